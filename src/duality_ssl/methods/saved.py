"""What a method's checkpoints and files of weights hold, and how they are read."""

from argparse import ArgumentError
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Self

from lightning import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from duality_ssl.networks import weights
from duality_ssl.networks.backbones import check_images
from duality_ssl.networks.teacher import Teacher
from duality_ssl.registry import imports_as_before, limit_imports, named_modules

# arguments that decide which weights there are, and their shapes
_SHAPING = (
    *("backbone", "projector", "embedding_dim", "in_channels", "image_size"),
    *("predictor", "teacher_momentum"),
)
# those that decide the groups of the optimizer
_GROUPING = ("freeze", "layer_decay", "predictor_schedule")


class SavedMethod(LightningModule):
    """The checkpoints and files of weights of a method."""

    backbone: nn.Module
    projector: nn.Module
    teacher: Teacher | None
    pretrained: str | Path | None
    in_channels: int

    def load_pretrained(self) -> None:
        """Load the weights that a fit starts from, if any; once."""
        if self.pretrained is not None:
            weights.load_backbone(self.backbone, self.pretrained)
            if self.teacher is not None:
                self.teacher.restart(self.backbone, self.projector)
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
        values = {name: "null" if saved[name] is None else saved[name] for name in other}
        options = " ".join(f"--model.{name} {value}" for name, value in values.items())
        differs = min({*ours.items()} ^ {*theirs.items()})[0]
        raise ValueError(
            f"The checkpoint is of another network ({differs} differs): "
            f"{f'set {options}, or ' if other else ''}load its backbone with --model.pretrained."
        )

    def check_groups(self, checkpoint: Mapping[str, Any]) -> None:
        """Raise ``ValueError`` for a checkpoint whose optimizer has other groups of parameters."""
        saved = checkpoint.get("hyper_parameters", {})
        for name in _GROUPING:
            if name in saved and saved[name] != self.hparams.get(name):
                raise ValueError(
                    f"Expected --model.{name} {saved[name]} as in the checkpoint, whose optimizer "
                    f"is resumed, but got {self.hparams.get(name)}. To start from its backbone "
                    "only, use --model.pretrained."
                )

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

    def save_backbone(self, path: str | Path, teacher: bool = False) -> None:
        """Write the backbone's weights and description to a safetensors file.

        With ``teacher``, those of the teacher's backbone, if there is a teacher.
        """
        network = self.teacher if teacher and self.teacher is not None else self
        weights.save_backbone(network.backbone.state_dict(), path, self.about_backbone())

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
