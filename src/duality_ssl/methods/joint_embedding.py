"""The training step that all methods share: views, one network, one criterion."""

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from duality_ssl.batches import one_view, training_views
from duality_ssl.criteria import Criterion
from duality_ssl.distributed import process_group
from duality_ssl.methods.checks import check_rates, check_targets
from duality_ssl.methods.fitted import FittedMethod
from duality_ssl.methods.signature import method_init, takes_dimensions
from duality_ssl.networks.backbones import build_backbone, check_features
from duality_ssl.networks.projector import create_projector, output_width
from duality_ssl.networks.stages import freeze_stages, layer_scales
from duality_ssl.networks.teacher import Teacher
from duality_ssl.optim import LARS


class JointEmbedding(FittedMethod):
    r"""Views of an image, one backbone f, one projector p, one criterion.

    .. math:: L = \mathrm{criterion}(p(f(x_1)),\; p(f(x_2)), \dots)

    The loss of W processes, and its gradient, is that of one process on the whole batch. A method
    is a subclass that names its criterion, ``class VICReg(JointEmbedding, criterion=...)``; it
    takes the arguments below and its criterion's, and further keywords of the class are their
    defaults: ``class BYOL(JointEmbedding, criterion=..., predictor="4096-d")``. The keyword
    ``head`` names a function that builds another projector, with the arguments of
    `duality_ssl.networks.projector.create_projector`.

    A criterion that lists ``targets`` among its inputs gets embeddings of the large views: the
    teacher's if there is one, or else the network's own, before the predictor and detached. So
    stop-gradient and EMA, each with and without a predictor, are arguments of one method.

    Args:
        backbone: Name of the network whose features are kept: a torchvision ResNet or ConvNeXt
            (``resnet50``), one with a stem for 32-pixel images (``resnet18_32``), ``resnet_tiny``
            for a CPU, or any timm name; or the dotted path of a function that builds one
            (``mine.two_layers``), whose module is imported.
        projector: Widths of the projector's linear layers, ``"8192-8192-2048"``; the letter d
            stands for ``embedding_dim``, as in ``"8192-8192-d"``. ``"2048-2048-n"`` ends in a batch
            norm without affine parameters, ``"2048-2048-b"`` in a layer with a bias.
        embedding_dim: Dimensions D of the embeddings, the letter d of ``projector``.
        predictor: Widths of a predictor behind the projector, written as the projector's; its last
            is D, ``"4096-d"``. By default there is none.
        predictor_schedule: Whether the predictor's learning rate follows warm-up and cosine;
            otherwise it is constant, as in SimSiam.
        teacher_momentum: Momentum m of a teacher at the first step, from which it rises to 1 along
            a cosine: a moving average of backbone and projector. By default there is no teacher.
        stop_gradient: Whether targets are detached; without it, and without a teacher, the gradient
            reaches them, too, and the embeddings collapse.
        in_channels: Channels of the images, 1 for grey ones. The default is the data's on the
            command line, and 3 in Python.
        image_size: Side of the images in pixels, for a backbone whose weights depend on it: a
            transformer at another size than its name says.
        optimizer: Builds the optimizer from parameter groups. Learning rate and weight decay are
            set here, by ``base_lr`` and ``weight_decay``, whatever the optimizer's own defaults.
        scheduler: Builds a scheduler that replaces warm-up and cosine; stepped once an epoch.
        base_lr: Learning rate for a global batch of 256, scaled linearly (Goyal et al., 2017):
            ``lr = base_lr * global batch / 256``.
        weight_decay: Weight decay; biases, norm parameters and position embeddings are exempt.
        warmup_epochs: Epochs of linear warm-up from 0, before the cosine.
        final_lr_fraction: The cosine ends at this fraction of the learning rate.
        joint_forward: Send all views of one size through the network in one call, so that batch
            norm sees their 2 N images together, as in SimCLR's original code. The default is one
            call a view, N images each, as in the code of VICReg and Barlow Twins.
        pretrained: File of weights that a fit starts from, and that a test without a checkpoint
            evaluates: a checkpoint of this package, or the state dict of a backbone (``.pt``,
            ``.pth``, ``.safetensors``).
        freeze: Number of stages of the backbone, counted from the images, that are not trained. The
            first is the stem; then come the four stages of a ResNet or ConvNeXt, or the blocks of a
            transformer. Their batch norms keep their statistics.
        layer_decay: The learning rate falls by this factor from stage to stage, from the projector,
            which has the full rate, down to the stem; above 0, and 1 for one rate.
        channels_last: Keep the backbone's weights, and so its maps, in the channels-last layout:
            other rounding, and faster convolutions on CPUs and in half precision on GPUs.
        compile: Let `torch.compile` build the kernels of a fit; its first steps take longer.

    Source: sections 3 and 5 of Garrido et al., ICLR 2023, https://arxiv.org/abs/2206.02574
    """

    criterion_class: ClassVar[type[Criterion]]
    create_head: ClassVar[Callable[[str, int, int | None], nn.Module]] = create_projector
    defaults: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(
        cls,
        criterion: type[Criterion] | None = None,
        head: Callable[[str, int, int | None], nn.Module] | None = None,
        **defaults: Any,
    ) -> None:
        """Set the method's criterion, head and defaults; give it its signature."""
        super().__init_subclass__()
        if criterion is not None:
            cls.criterion_class = criterion
        if head is not None:
            cls.create_head = head
        cls.defaults = {**cls.defaults, **defaults}
        if "__init__" in vars(cls):
            if defaults:
                raise ValueError(
                    f"Expected class {cls.__name__} to have no keywords such as "
                    f"`{min(defaults)}`, since it has an __init__: pass it there."
                )
        elif hasattr(cls, "criterion_class") and (criterion or defaults):
            cls.__init__ = method_init(  # type: ignore[method-assign]
                cls, JointEmbedding, cls.criterion_class, cls.defaults
            )

    def __init__(
        self,
        *,
        backbone: str = "resnet50",
        projector: str = "8192-8192-8192",
        embedding_dim: int | None = None,
        predictor: str | None = None,
        predictor_schedule: bool = True,
        teacher_momentum: float | None = None,
        stop_gradient: bool = True,
        in_channels: int | None = None,
        image_size: int | None = None,
        optimizer: OptimizerCallable = LARS,
        scheduler: LRSchedulerCallable | None = None,
        base_lr: float = 0.3,
        weight_decay: float = 1e-6,
        warmup_epochs: float = 10,
        final_lr_fraction: float = 0.001,
        joint_forward: bool = False,
        pretrained: str | Path | None = None,
        freeze: int = 0,
        layer_decay: float = 1.0,
        channels_last: bool = True,
        compile: bool = False,
        **criterion_args: Any,
    ) -> None:
        if not hasattr(type(self), "criterion_class"):
            raise ValueError(
                "Expected a method with a criterion, such as VICReg, but got "
                f"{type(self).__name__}. Name one: class Mine(JointEmbedding, criterion=Mine)."
            )
        check_rates(
            final_lr_fraction,
            base_lr=base_lr,
            weight_decay=weight_decay,
            warmup_epochs=warmup_epochs,
        )
        super().__init__()
        # classes and functions are left out: checkpoints load with weights_only=True
        self.save_hyperparameters(ignore=["optimizer", "scheduler", "pretrained"])
        self.in_channels = 3 if in_channels is None else in_channels
        if "in_channels" in self.hparams:  # not if a subclass fixes it in its own signature
            self.hparams["in_channels"] = self.in_channels
        self.backbone = build_backbone(backbone, self.in_channels, image_size)
        self.num_features: int = self.backbone.num_features  # type: ignore[assignment]
        freeze_stages(self.backbone, freeze)
        layer_scales(self.backbone, layer_decay)  # refuses what the optimizer could not have
        self.projector = type(self).create_head(projector, self.num_features, embedding_dim)
        self.embedding_dim = output_width(self.projector)
        self.predictor: nn.Module | None = None
        if predictor is not None:
            width = self.embedding_dim
            self.predictor = create_projector(predictor, width, width, "predictor")
        self.teacher: Teacher | None = None
        if teacher_momentum is not None:
            self.teacher = Teacher(self.backbone, self.projector, teacher_momentum)
        # after the networks: their weights are the same for every method of one seed
        if takes_dimensions(self.criterion_class):
            criterion_args["dimensions"] = self.embedding_dim
        self.criterion = self.criterion_class(**criterion_args)
        has_teacher = self.teacher is not None
        check_targets(self.criterion, teacher=has_teacher, stop_gradient=stop_gradient)
        self.predictor_schedule, self.stop_gradient = predictor_schedule, stop_gradient
        self.optimizer, self.scheduler = optimizer, scheduler
        self.base_lr, self.weight_decay = base_lr, weight_decay
        self.warmup_epochs, self.final_lr_fraction = warmup_epochs, final_lr_fraction
        self.joint_forward, self.channels_last = joint_forward, channels_last
        self.pretrained = pretrained
        self.frozen_stages, self.layer_decay = freeze, layer_decay
        if freeze:
            self.train()  # but for the frozen stages
        self.compiled = compile  # `compile` is a method of every module

    def forward(self, images: Tensor) -> Tensor:
        """Compute features ``(N, F)`` of images ``(N, C, H, W)``: the output of pretraining."""
        features: Tensor = self.backbone(images)
        check_features(features, len(images), self.num_features)
        return features

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Compute and log the criterion's terms of ``(views, labels)``, each view of N images.

        Returns the ``loss``, and for the callbacks ``features`` and ``embeddings`` of the large
        views, before the predictor and detached, and the ``labels`` (-1 is unlabelled).
        """
        large, small, labels = training_views(batch)
        terms, features, embeddings = self.compute_terms(large, small, labels)
        self.log("train/loss", terms["loss"], prog_bar=True, batch_size=len(labels))
        parts = {f"train/{name}": term for name, term in terms.items() if name != "loss"}
        self.log_dict(parts, batch_size=len(labels))
        return {
            "loss": terms["loss"],
            "features": tuple(h.detach() for h in features[: len(large)]),
            "embeddings": tuple(z.detach() for z in embeddings[: len(large)]),
            "labels": labels,
        }

    def compute_terms(
        self, large: Sequence[Tensor], small: Sequence[Tensor], labels: Tensor
    ) -> tuple[dict[str, Tensor], Sequence[Tensor], Sequence[Tensor]]:
        """Compute the criterion's terms, and features and embeddings of the large and small views.

        Args:
            large: Views ``(N, C, S, S)``, of which there are targets.
            small: Further views, of another size.
            labels: Labels ``(N,)``.
        """
        calls = self._calls([*large, *small])
        features = [self(images) for images in calls]
        embeddings = [self.projector(h) for h in features]
        predictions = embeddings
        if self.predictor is not None:
            predictions = [self.predictor(z) for z in embeddings]
        if self.joint_forward:
            features, embeddings, predictions = (
                [view for call in parts for view in call.split(len(labels))]
                for parts in (features, embeddings, predictions)
            )
        inputs: dict[str, Any] = {"labels": labels, "step": self.global_step}
        if "targets" in self.criterion.inputs:
            inputs["targets"] = self._targets(large, embeddings)
        inputs = {name: inputs[name] for name in self.criterion.inputs}
        terms = self.criterion(*predictions, group=process_group(), **inputs)
        return terms, features, embeddings

    def _calls(self, views: Sequence[Tensor]) -> Sequence[Tensor]:
        """The images of each call of the network: a view, or all views of one size."""
        if not self.joint_forward:
            return views
        return [torch.cat([*same]) for _, same in groupby(views, key=lambda images: images.shape)]

    def _targets(self, large: Sequence[Tensor], own: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The teacher's embeddings of the large views, or those of the network."""
        if self.teacher is not None:
            own = [self.teacher(images) for images in self._calls(large)]
            own = [view for call in own for view in call.split(len(large[0]))]
        return tuple(z.detach() if self.stop_gradient else z for z in own[: len(large)])

    def validation_step(
        self, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Tensor]:
        """Return features, embeddings and labels of one un-augmented view, for the callbacks."""
        images, labels = one_view(batch)
        features = self(images)
        return {"features": features, "embeddings": self.projector(features), "labels": labels}

    test_step = predict_step = validation_step
