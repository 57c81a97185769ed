"""The methods: a LightningModule for each criterion, all with JointEmbedding's training step."""

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
from torch.optim.lr_scheduler import ReduceLROnPlateau

from duality_ssl.batches import one_view, two_views
from duality_ssl.criteria import Criterion
from duality_ssl.distributed import process_group
from duality_ssl.methods.strategy import check_processes, check_strategy
from duality_ssl.networks.backbones import build_backbone, check_features
from duality_ssl.networks.batch_norm import synchronize_batch_norm
from duality_ssl.networks.projector import create_projector
from duality_ssl.networks.weights import load_backbone
from duality_ssl.optim import LARS, fuse, parameter_groups, scaled_lr, warmup_cosine
from duality_ssl.registry import imports_as_before, limit_imports, named_modules

# the arguments that decide which weights there are
_SHAPING = ("backbone", "projector", "embedding_dim", "in_channels", "image_size")


class JointEmbedding(LightningModule):
    r"""Two views, one backbone f, one projector p, one criterion.

    .. math:: L = \mathrm{criterion}(p(f(x_1)),\; p(f(x_2)))

    The criterion compares the embeddings of all processes, with the exact gradient: the loss of W
    processes is that of one process on the whole batch. A method is a
    subclass that names its criterion, ``class VICReg(JointEmbedding, criterion=criteria.VICReg)``;
    it takes the arguments below and its criterion's.

    Args:
        backbone: Name of the network whose features are kept: a torchvision ResNet or ConvNeXt
            (``resnet50``), one with a stem for 32-pixel images (``resnet18_32``), ``resnet_tiny``
            for a CPU, or any timm name; or the dotted path of a function that builds one
            (``mine.two_layers``), whose module is imported.
        projector: Widths of the projector's linear layers, ``"8192-8192-2048"``; the letter d
            stands for ``embedding_dim``, as in ``"8192-8192-d"``.
        embedding_dim: Dimensions D of the embeddings, the letter d of ``projector``.
        in_channels: Channels of the images, 1 for grey ones. On the command line those of the data
            by default, in Python 3.
        image_size: Side of the images in pixels, for a backbone whose weights depend on it: a
            transformer at another size than its name says.
        optimizer: Builds the optimiser from parameter groups. Learning rate and weight decay are
            set here, by ``base_lr`` and ``weight_decay``, whatever the optimiser's own defaults.
        scheduler: Builds a scheduler that replaces warm-up and cosine; stepped once an epoch.
        base_lr: Learning rate for a global batch of 256; it is scaled linearly,
            ``lr = base_lr * global batch / 256``.
        weight_decay: Weight decay; biases, norm parameters and position embeddings are exempt.
        warmup_epochs: Epochs of linear warm-up from 0, before the cosine.
        final_lr_fraction: The cosine ends at this fraction of the learning rate.
        joint_forward: Send both views through the network in one call, so that batch norm sees
            their 2 N images together, as SimCLR's original code does; otherwise one call a view, N
            images each, as that of VICReg and Barlow Twins, and every recipe in ``configs/``.
        pretrained: File of weights that a fit starts from: a checkpoint of this package, or the
            state dict of a backbone (``.pt``, ``.pth``, ``.safetensors``).
        channels_last: Keep the backbone's weights, and so its maps, with their channels last: other
            rounding, and faster convolutions on CPUs and in half precision on GPUs.
        compile: Have `torch.compile` build the kernels of a fit; its first steps wait for that.

    Raises:
        ValueError: For a name, a width or a number that cannot be used.

    Source: sections 3 and 5 of Garrido et al., ICLR 2023, https://arxiv.org/abs/2206.02574
    """

    criterion_class: ClassVar[type[Criterion]]

    def __init_subclass__(cls, criterion: type[Criterion] | None = None, **kwargs: Any) -> None:
        """Give the method its criterion, and its signature the criterion's arguments.

        The defaults of a criterion so stand in one signature, its own, and the command line still
        sees all arguments of a method.
        """
        super().__init_subclass__(**kwargs)
        if criterion is not None:
            cls.criterion_class = criterion
            if "__init__" not in vars(cls):
                cls.__init__ = _joint_init(criterion)  # type: ignore[method-assign]

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
            raise ValueError(
                f"Expected `final_lr_fraction` in [0, 1], but got {final_lr_fraction}."
            )
        super().__init__()
        # a class or a function has no place in a checkpoint that loads with weights_only=True
        self.save_hyperparameters(ignore=["optimizer", "scheduler", "pretrained"])
        self.in_channels = 3 if in_channels is None else in_channels
        if "in_channels" in self.hparams:  # and not in a signature of the method's own
            self.hparams["in_channels"] = self.in_channels
        self.criterion = self.criterion_class(**criterion_args)
        self.backbone = build_backbone(backbone, self.in_channels, image_size)
        self.num_features: int = self.backbone.num_features  # type: ignore[assignment]
        self.projector = create_projector(projector, self.num_features, embedding_dim)
        self.embedding_dim: int = self.projector[-1].out_features  # type: ignore[assignment]
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.base_lr = base_lr
        self.weight_decay = weight_decay
        self.warmup_epochs = warmup_epochs
        self.final_lr_fraction = final_lr_fraction
        self.joint_forward = joint_forward
        self.pretrained = pretrained
        self.channels_last = channels_last
        self.compiled = compile  # `compile` is a method of every module

    def setup(self, stage: str) -> None:
        """Load the weights a fit starts from; refuse a strategy or images that do not fit."""
        check_strategy(self.trainer.strategy)
        check_processes(self.trainer)
        if stage == "fit" and getattr(self.trainer.strategy, "_layer_sync", None) is not None:
            synchronize_batch_norm(self, self.trainer.strategy.root_device)
        if self.channels_last:
            # a convolution takes its layout from its weights, and the maps follow
            self.backbone.to(memory_format=torch.channels_last)
        if self.compiled and stage == "fit":
            for module in (self.backbone, self.projector, self.criterion):
                module.compile()  # in place: no other name in the state dict
        if stage == "fit" and self.trainer.ckpt_path is None:
            self.load_pretrained()
        datamodule = getattr(self.trainer, "datamodule", None)
        channels = getattr(datamodule, "channels", self.in_channels)
        self.check_images(channels, getattr(datamodule, "image_size", None))

    def load_pretrained(self) -> None:
        """Load the weights that a fit starts from, if there are any; once."""
        if self.pretrained is not None:
            load_backbone(self.backbone, self.pretrained)
            self.pretrained = None

    def check_images(self, channels: int, size: int | None) -> None:
        """Raise ``ValueError`` for images of another kind than the backbone's.

        Args:
            channels: Of the images.
            size: Their side in pixels; None where it is not known.
        """
        if channels != self.in_channels:
            raise ValueError(
                f"Expected images of {self.in_channels} channels, but the data has {channels}. "
                f"Set --model.in_channels {channels}."
            )
        patches: Any = getattr(self.backbone, "patch_embed", None)  # of a transformer
        if size and getattr(patches, "strict_img_size", False) and size not in patches.img_size:
            raise ValueError(
                f"Expected images of {patches.img_size[0]} pixels, but the data has {size}. "
                f"Set --model.image_size {size}, or --data.image_size {patches.img_size[0]}."
            )

    def check_weights(self, checkpoint: Mapping[str, Any]) -> None:
        """Raise ``ValueError`` for a checkpoint of another network; say what it is of."""
        ours = {key: weight.shape for key, weight in self.state_dict().items()}
        theirs = {key: weight.shape for key, weight in checkpoint["state_dict"].items()}
        if ours == theirs:
            return
        saved = checkpoint.get("hyper_parameters", {})
        other = {n: saved[n] for n in _SHAPING if n in saved and saved[n] != self.hparams.get(n)}
        raise ValueError(
            "The checkpoint is of another network: "
            + (
                f"set {' '.join(f'--model.{name} {value}' for name, value in other.items())}, or "
                "take its backbone alone, by --model.pretrained."
                if other
                else f"its {min({*ours.items()} ^ {*theirs.items()})[0]} is not the method's here."
            )
        )

    def on_train_start(self) -> None:
        """Log at least once an epoch, however short the epoch."""
        batches = self.trainer.num_training_batches
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        self.trainer.log_every_n_steps = int(min(every, batches))  # type: ignore[attr-defined]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say whose weights these are, and what `export_backbone` is to say of the backbone's."""
        checkpoint["method"] = type(self).__name__
        checkpoint["about_backbone"] = self.about_backbone()

    def about_backbone(self) -> dict[str, Any]:
        """Say which network the backbone is, which images it expects, and how it was trained.

        Returns:
            ``backbone``, its name, and ``in_channels``, for `create_backbone`; ``image_size``, the
            side in pixels, and ``mean`` and ``std`` of the images' normalisation (None where the
            data does not say), for values in [0, 1]; ``method`` and optimiser ``step``.
        """
        data = getattr(self.trainer, "datamodule", None)
        images = {name: getattr(data, name, None) for name in ("image_size", "mean", "std")}
        for name, said in images.items():
            # somebody's data module may say it otherwise, and a checkpoint holds plain numbers only
            numbers = tuple(map(float, said)) if isinstance(said, tuple) else None
            images[name] = said if isinstance(said, int) else numbers
        network = {"backbone": self.hparams["backbone"], "in_channels": self.in_channels}
        training = {"method": type(self).__name__, "step": self.trainer.global_step}
        return network | images | training

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Warn of weights that another method has trained."""
        method = checkpoint.get("method", type(self).__name__)
        if method != type(self).__name__:
            rank_zero_warn(
                f"The checkpoint is of {method}, and {type(self).__name__} goes on with its "
                "weights and optimiser. To start from its backbone only, use --model.pretrained."
            )

    @classmethod
    def load_from_checkpoint(cls, *args: Any, **kwargs: Any) -> Self:
        """Build the method as a checkpoint says, and fill it; nothing of the file is run.

        Lightning's, with other defaults: nothing is unpickled, also of an address, and classes that
        the arguments inside the file may name are not imported from just anywhere. A backbone at a
        dotted path is to be named again, ``backbone="mine.two_layers"``, unless it is in the module
        of the method.

        Args:
            *args: Those of `lightning.LightningModule.load_from_checkpoint`.
            **kwargs: Likewise.

        Raises:
            ValueError: If the file is no checkpoint, or asks for more.
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

    def forward(self, images: Tensor) -> Tensor:
        """Features ``(N, F)`` of images ``(N, C, H, W)``: what is kept after pretraining."""
        return self._features(images)

    def _features(self, images: Tensor) -> Tensor:
        features: Tensor = self.backbone(images)
        check_features(features, len(images), self.num_features)
        return features

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Log the criterion's terms; hand features and embeddings, detached, to the callbacks.

        Args:
            batch: ``([x1, x2], labels)``, two views of N images and N labels (-1 is unlabelled).
            batch_idx: Its number in the epoch.

        Raises:
            ValueError: For another batch, or a backbone that returns anything but ``(N, F)``.
        """
        x1, x2, labels = two_views(batch)
        if self.joint_forward:
            features = self._features(torch.cat([x1, x2]))
            z1, z2 = self.projector(features).chunk(2)
            h1, h2 = features.chunk(2)
        else:
            h1, h2 = self._features(x1), self._features(x2)
            z1, z2 = self.projector(h1), self.projector(h2)
        terms = self.criterion(z1, z2, group=process_group())
        self.log("train/loss", terms["loss"], prog_bar=True, batch_size=len(labels))
        parts = {f"train/{name}": term for name, term in terms.items() if name != "loss"}
        self.log_dict(parts, batch_size=len(labels))
        return {
            "loss": terms["loss"],
            "features": (h1.detach(), h2.detach()),
            "embeddings": (z1.detach(), z2.detach()),
            "labels": labels,
        }

    def _represent(self, batch: Any) -> dict[str, Tensor]:
        images, labels = one_view(batch)
        features = self._features(images)
        return {"features": features, "embeddings": self.projector(features), "labels": labels}

    def validation_step(
        self, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Tensor]:
        """Features, embeddings and labels of one un-augmented view, for the callbacks."""
        return self._represent(batch)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Features, embeddings and labels of one un-augmented view, for the callbacks."""
        return self._represent(batch)

    def predict_step(
        self, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Tensor]:
        """Features, embeddings and labels of one un-augmented view, for the callbacks."""
        return self._represent(batch)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Scale the learning rate to the global batch; warm up, then follow a cosine per step."""
        global_batch = self._global_batch()
        lr = scaled_lr(self.base_lr, global_batch)
        rank_zero_info(
            f"Learning rate {lr:g} = base_lr {self.base_lr:g} x global batch {global_batch} / 256."
        )
        optimizer = self.build_optimizer(lr)
        _warn_of_replaced(optimizer, {"lr": lr, "weight_decay": self.weight_decay})
        fuse(optimizer)
        if self.scheduler is not None:
            schedule, interval = self.scheduler(optimizer), "epoch"
            if isinstance(schedule, ReduceLROnPlateau):
                raise ValueError(
                    "Expected a scheduler that needs no metric, but got ReduceLROnPlateau: there "
                    "is no validation loss here. Take another one, or none for the cosine."
                )
        else:
            total_steps = self._total_steps(lr)
            warmup = self._warmup_steps(total_steps)
            schedule = warmup_cosine(optimizer, warmup, total_steps, self.final_lr_fraction)
            interval = "step"
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": interval},
        }

    def build_optimizer(self, lr: float) -> torch.optim.Optimizer:
        """The optimiser of all weights, at one learning rate; biases and norms do not decay.

        Raises:
            ValueError: If the optimiser takes none of its options' values.
        """
        groups = [{**group, "lr": lr} for group in parameter_groups(self, self.weight_decay)]
        try:
            return self.optimizer(groups)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"The optimiser refuses its options: {error}. Mend those of --model.optimizer."
            ) from error

    def _total_steps(self, lr: float) -> float:
        """Optimiser steps of the whole fit; infinite, with a warning, where it has no last one."""
        total = self.trainer.estimated_stepping_batches
        if 0 < total < math.inf:
            return total
        # Lightning says -1 for epochs of a loader without a length
        rank_zero_warn(
            "Expected a number of steps for the learning rate's cosine, but the fit has no end "
            f"that is known: after the warm-up the rate stays {lr:g}. Set --trainer.max_steps, or "
            "--trainer.max_epochs with a loader that knows its length."
        )
        return math.inf

    def _warmup_steps(self, total_steps: float) -> float:
        if self.warmup_epochs == 0:
            return 0
        self.trainer.fit_loop.setup_data()  # without which the length of an epoch is not known
        if math.isinf(self.trainer.num_training_batches):
            raise ValueError(
                f"Expected loaders that know their length, to warm up for {self.warmup_epochs:g} "
                "epochs, but got one that does not. Set --model.warmup_epochs 0, or in "
                "--trainer.limit_train_batches the number of batches of an epoch."
            )
        per_epoch = math.ceil(
            self.trainer.num_training_batches / self.trainer.accumulate_grad_batches
        )
        steps = round(self.warmup_epochs * per_epoch)
        if steps >= total_steps and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            rank_zero_warn(
                f"The warm-up of {self.warmup_epochs:g} epochs ({steps} steps) is as long as the "
                f"whole training ({total_steps} steps): the learning rate never reaches its cosine."
                " Set --model.warmup_epochs lower."
            )
        return min(steps, total_steps)

    def _global_batch(self) -> int:
        """Samples of one optimiser step, over all processes and accumulated batches."""
        size = getattr(getattr(self.trainer, "datamodule", None), "batch_size", None)
        if size is None:
            self.trainer.fit_loop.setup_data()  # without which there is no loader to ask
            loader = self.trainer.train_dataloader
            sampler = getattr(loader, "batch_sampler", None)
            size = getattr(loader, "batch_size", None) or getattr(sampler, "batch_size", None)
        if size is None:
            raise ValueError(
                "Expected a data module or a training loader with a `batch_size` to scale the "
                "learning rate to, but neither has one: give the data module, or the batch sampler "
                "of the loader, the attribute `batch_size`, the images of one process's batch."
            )
        return size * self.trainer.world_size * self.trainer.accumulate_grad_batches


def _joint_init(criterion: type[Criterion]) -> Callable[..., None]:
    """Build an ``__init__`` whose signature has the shared arguments and the criterion's."""
    shared = list(inspect.signature(JointEmbedding.__init__).parameters.values())[:-1]
    own = [
        parameter.replace(kind=parameter.KEYWORD_ONLY)
        for parameter in inspect.signature(criterion).parameters.values()
    ]

    def __init__(self: JointEmbedding, **kwargs: Any) -> None:
        JointEmbedding.__init__(self, **kwargs)

    __init__.__signature__ = inspect.Signature([*shared, *own])  # type: ignore[attr-defined]
    arguments = "\n".join(_documented_arguments(cls) for cls in (criterion, JointEmbedding))
    __init__.__doc__ = f"Build the network and its criterion.\n\nArgs:\n{arguments}"
    return __init__


def _documented_arguments(cls: type) -> str:
    """The lines under ``Args:`` in the docstring of a class, for the command line's help."""
    return (inspect.getdoc(cls) or "").partition("Args:\n")[2].partition("\n\n")[0]


def _warn_of_replaced(optimizer: torch.optim.Optimizer, used: dict[str, float]) -> None:
    """Say so when the optimiser was given values of its own that are not used."""
    parameters = inspect.signature(type(optimizer)).parameters
    for name, value in used.items():
        given = optimizer.defaults.get(name, value)
        # 0 is no decision: where the command line changes the class, LARS's decay of 0 stays behind
        if name in parameters and given not in (parameters[name].default, value, 0):
            rank_zero_warn(
                f"The optimiser's own {name} {given:g} is replaced by {value:g}. "
                f"Set --model.{'base_lr' if name == 'lr' else name} instead."
            )
