"""The training step that all methods share: two views, one network, one criterion."""

import inspect
import math
from argparse import ArgumentError
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, ClassVar, Self

import torch
from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from duality_ssl._internals.lightning import has_sync_batchnorm
from duality_ssl.batches import one_view, two_views
from duality_ssl.criteria import Criterion
from duality_ssl.distributed import process_group
from duality_ssl.methods import optimization
from duality_ssl.methods.strategy import check_strategy
from duality_ssl.networks import weights
from duality_ssl.networks.backbones import build_backbone, check_features, check_images
from duality_ssl.networks.batch_norm import synchronize_batch_norm
from duality_ssl.networks.projector import create_projector
from duality_ssl.optim import LARS, fuse
from duality_ssl.registry import imports_as_before, limit_imports, named_modules

# arguments that decide the shapes of the weights
_SHAPING = ("backbone", "projector", "embedding_dim", "in_channels", "image_size")


class JointEmbedding(LightningModule):
    r"""Two views, one backbone f, one projector p, one criterion.

    .. math:: L = \mathrm{criterion}(p(f(x_1)),\; p(f(x_2)))

    The loss of W processes, and its gradient, is that of one process on the whole batch. A method
    is a subclass that names its criterion, ``class VICReg(JointEmbedding, criterion=...)``; it
    takes the arguments below and its criterion's.

    Args:
        backbone: Name of the network whose features are kept: a torchvision ResNet or ConvNeXt
            (``resnet50``), one with a stem for 32-pixel images (``resnet18_32``), ``resnet_tiny``
            for a CPU, or any timm name; or the dotted path of a function that builds one
            (``mine.two_layers``), whose module is imported.
        projector: Widths of the projector's linear layers, ``"8192-8192-2048"``; the letter d
            stands for ``embedding_dim``, as in ``"8192-8192-d"``.
        embedding_dim: Dimensions D of the embeddings, the letter d of ``projector``.
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
        joint_forward: Send both views through the network in one call, so that batch norm sees
            their 2 N images together, as in SimCLR's original code. The default is one call a view,
            N images each, as in the code of VICReg and Barlow Twins.
        pretrained: File of weights that a fit starts from, and that a test without a checkpoint
            evaluates: a checkpoint of this package, or the state dict of a backbone (``.pt``,
            ``.pth``, ``.safetensors``).
        channels_last: Keep the backbone's weights, and so its maps, in the channels-last layout:
            other rounding, and faster convolutions on CPUs and in half precision on GPUs.
        compile: Let `torch.compile` build the kernels of a fit; its first steps take longer.

    Source: sections 3 and 5 of Garrido et al., ICLR 2023, https://arxiv.org/abs/2206.02574
    """

    criterion_class: ClassVar[type[Criterion]]

    def __init_subclass__(cls, criterion: type[Criterion] | None = None, **kwargs: Any) -> None:
        """Set the method's criterion, and add the criterion's arguments to the method's."""
        super().__init_subclass__(**kwargs)
        if criterion is not None:
            cls.criterion_class = criterion
            if "__init__" not in vars(cls):
                cls.__init__ = _init_with_arguments_of(criterion)  # type: ignore[method-assign]

    def __init__(
        self,
        *,
        backbone: str = "resnet50",
        projector: str = "8192-8192-8192",
        embedding_dim: int | None = None,
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
        channels_last: bool = True,
        compile: bool = False,
        **criterion_args: Any,
    ) -> None:
        if not hasattr(type(self), "criterion_class"):
            raise ValueError(
                "Expected a method with a criterion, such as VICReg, but got "
                f"{type(self).__name__}. Name one: class Mine(JointEmbedding, criterion=Mine)."
            )
        rates = {"base_lr": base_lr, "weight_decay": weight_decay, "warmup_epochs": warmup_epochs}
        for name, value in rates.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"Expected `{name}` to be finite and 0 or more, but got {value}.")
        if not 0 <= final_lr_fraction <= 1:
            raise ValueError(f"Expected `final_lr_fraction` in [0, 1], got {final_lr_fraction}.")
        super().__init__()
        # classes and functions are left out: checkpoints load with weights_only=True
        self.save_hyperparameters(ignore=["optimizer", "scheduler", "pretrained"])
        self.in_channels = 3 if in_channels is None else in_channels
        if "in_channels" in self.hparams:  # not if a subclass fixes it in its own signature
            self.hparams["in_channels"] = self.in_channels
        self.criterion = self.criterion_class(**criterion_args)
        self.backbone = build_backbone(backbone, self.in_channels, image_size)
        self.num_features: int = self.backbone.num_features  # type: ignore[assignment]
        self.projector = create_projector(projector, self.num_features, embedding_dim)
        self.embedding_dim: int = self.projector[-1].out_features  # type: ignore[assignment]
        self.optimizer, self.scheduler = optimizer, scheduler
        self.base_lr, self.weight_decay = base_lr, weight_decay
        self.warmup_epochs, self.final_lr_fraction = warmup_epochs, final_lr_fraction
        self.joint_forward, self.channels_last = joint_forward, channels_last
        self.pretrained = pretrained
        self.compiled = compile  # `compile` is a method of every module

    def forward(self, images: Tensor) -> Tensor:
        """Compute features ``(N, F)`` of images ``(N, C, H, W)``: the output of pretraining."""
        features: Tensor = self.backbone(images)
        check_features(features, len(images), self.num_features)
        return features

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Compute and log the criterion's terms of ``([x1, x2], labels)``, two views of N images.

        Returns the ``loss``, and for the callbacks ``features`` and ``embeddings`` of both views,
        detached, and the ``labels`` (-1 is unlabelled).
        """
        x1, x2, labels = two_views(batch)
        if self.joint_forward:
            features = self(torch.cat([x1, x2]))
            z1, z2 = self.projector(features).chunk(2)
            h1, h2 = features.chunk(2)
        else:
            h1, h2 = self(x1), self(x2)
            z1, z2 = self.projector(h1), self.projector(h2)
        inputs = {"labels": labels} if "labels" in self.criterion.inputs else {}
        terms = self.criterion(z1, z2, group=process_group(), **inputs)
        self.log("train/loss", terms["loss"], prog_bar=True, batch_size=len(labels))
        parts = {f"train/{name}": term for name, term in terms.items() if name != "loss"}
        self.log_dict(parts, batch_size=len(labels))
        return {
            "loss": terms["loss"],
            "features": (h1.detach(), h2.detach()),
            "embeddings": (z1.detach(), z2.detach()),
            "labels": labels,
        }

    def validation_step(
        self, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Tensor]:
        """Return features, embeddings and labels of one un-augmented view, for the callbacks."""
        images, labels = one_view(batch)
        features = self(images)
        return {"features": features, "embeddings": self.projector(features), "labels": labels}

    test_step = predict_step = validation_step

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Scale the learning rate to the global batch; warm up, then follow a cosine per step."""
        batch = optimization.global_batch(self.trainer)
        lr = self.base_lr * batch / 256
        rank_zero_info(
            f"Learning rate {lr:g} = base_lr {self.base_lr:g} x global batch {batch} / 256."
        )
        optimizer = self.build_optimizer(lr)
        optimization.warn_of_replaced(optimizer, lr=lr, weight_decay=self.weight_decay)
        fuse(optimizer)
        if self.scheduler is not None:
            return {"optimizer": optimizer, "lr_scheduler": self.scheduler(optimizer)}
        total = optimization.total_steps(self.trainer)
        warmup = optimization.warmup_steps(self.trainer, self.warmup_epochs, total)
        cosine = optimization.warmup_cosine(optimizer, warmup, total, self.final_lr_fraction)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}

    def build_optimizer(self, lr: float) -> torch.optim.Optimizer:
        """Build the optimizer; raise ``ValueError`` if it refuses the values of its options."""
        groups = optimization.parameter_groups(self, self.weight_decay)
        try:
            return self.optimizer([{**group, "lr": lr} for group in groups])
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"The optimizer refuses its options: {error}. Correct those of --model.optimizer."
            ) from error

    def setup(self, stage: str) -> None:
        """Refuse a strategy or images that do not fit; prepare the network."""
        check_strategy(self.trainer.strategy)
        data = getattr(self.trainer, "datamodule", None)
        channels = getattr(data, "channels", self.in_channels)
        self.check_images(channels, getattr(data, "image_size", None))
        if self.channels_last:
            # a convolution's output takes the layout of its weight
            self.backbone.to(memory_format=torch.channels_last)
        if stage != "fit":
            return
        if has_sync_batchnorm(self.trainer):
            synchronize_batch_norm(self, self.trainer.strategy.root_device)
        if self.compiled:
            for module in (self.backbone, self.projector, self.criterion):
                module.compile()  # in place: the names in the state dict stay
        if self.trainer.ckpt_path is None:
            self.load_pretrained()

    def load_pretrained(self) -> None:
        """Load the weights that a fit starts from, if any; once."""
        if self.pretrained is not None:
            weights.load_backbone(self.backbone, self.pretrained)
            self.pretrained = None

    def check_images(self, channels: int, size: int | None) -> None:
        """Raise ``ValueError`` for images that the backbone cannot take; ``size`` in pixels."""
        check_images(self.backbone, self.in_channels, channels, size)

    def check_weights(self, checkpoint: Mapping[str, Any]) -> None:
        """Raise ``ValueError`` for a checkpoint of another network, with the options that fit."""
        ours = {key: weight.shape for key, weight in self.state_dict().items()}
        theirs = {key: weight.shape for key, weight in checkpoint["state_dict"].items()}
        if ours == theirs:
            return
        saved = checkpoint.get("hyper_parameters", {})
        other = [n for n in _SHAPING if n in saved and saved[n] != self.hparams.get(n)]
        options = " ".join(f"--model.{name} {saved[name]}" for name in other)
        differs = min({*ours.items()} ^ {*theirs.items()})[0]
        raise ValueError(
            f"The checkpoint is of another network ({differs} differs): "
            f"{f'set {options}, or ' if other else ''}load its backbone with --model.pretrained."
        )

    def on_train_start(self) -> None:
        """Log at least once an epoch, however short the epoch."""
        batches = self.trainer.num_training_batches
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        self.trainer.log_every_n_steps = int(min(every, batches))  # type: ignore[attr-defined]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the method's name and a description of the backbone, for `export_backbone`."""
        checkpoint["method"] = type(self).__name__
        checkpoint["about_backbone"] = self.about_backbone()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Warn of weights that another method has trained."""
        method = checkpoint.get("method", type(self).__name__)
        if method != type(self).__name__:
            rank_zero_warn(
                f"The checkpoint is of {method}; {type(self).__name__} continues with its weights "
                "and optimizer state. To start from its backbone only, use --model.pretrained."
            )

    def save_backbone(self, path: str | Path) -> None:
        """Write the backbone's weights and description to a safetensors file."""
        weights.save_backbone(self.backbone.state_dict(), path, self.about_backbone())

    def about_backbone(self) -> dict[str, Any]:
        """Describe the backbone for `create_backbone`, the images it expects, and its training.

        ``mean`` and ``std`` normalize values in [0, 1]; what the data does not say is None.
        """
        data = getattr(self.trainer, "datamodule", None)
        about = {"backbone": self.hparams["backbone"], "in_channels": self.in_channels}
        for name in ("image_size", "mean", "std"):
            value = getattr(data, name, None)
            # a checkpoint holds plain numbers only, whatever a user's data module has
            numbers = tuple(map(float, value)) if isinstance(value, tuple) else None
            about[name] = value if isinstance(value, int) else numbers
        return about | {"method": type(self).__name__, "step": self.trainer.global_step}

    @classmethod
    def load_from_checkpoint(cls, *args: Any, **kwargs: Any) -> Self:
        """Build the method from a checkpoint; ``ValueError`` if that would run code of the file.

        Lightning's method, with nothing unpickled. A backbone at a dotted path has to be named
        again, ``backbone="mine.two_layers"``, unless it is in the module of the method.
        """
        with imports_as_before():
            named = [value for value in kwargs.values() if isinstance(value, str)]
            limit_imports({cls.__module__} | named_modules(named))
            try:
                return super().load_from_checkpoint(*args, **{"weights_only": True, **kwargs})
            except (UnpicklingError, ArgumentError, RuntimeError, EOFError) as error:
                raise ValueError(
                    f"The checkpoint cannot be loaded without running code of it: {error}"
                ) from error


def _init_with_arguments_of(criterion: type[Criterion]) -> Callable[..., None]:
    """Build an ``__init__`` whose signature and docstring name the criterion's arguments, too."""
    *shared, _ = inspect.signature(JointEmbedding.__init__).parameters.values()
    own = inspect.signature(criterion).parameters.values()

    def __init__(self: Any, **kwargs: Any) -> None:
        JointEmbedding.__init__(self, **kwargs)

    __init__.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [*shared, *(parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in own)]
    )
    docs = (inspect.getdoc(cls) or "" for cls in (criterion, JointEmbedding))
    arguments = "\n".join(doc.partition("Args:\n")[2].partition("\n\n")[0] for doc in docs)
    __init__.__doc__ = f"Build the network and its criterion.\n\nArgs:\n{arguments}"
    return __init__
