"""A backbone alone, with weights of any origin, to be evaluated."""

from pathlib import Path
from typing import Any

from lightning import LightningModule
from torch import Tensor

from duality_ssl.batches import one_view
from duality_ssl.networks.backbones import build_backbone, check_features, check_images
from duality_ssl.networks.weights import load_backbone


class FrozenBackbone(LightningModule):
    """A backbone with the weights of a file, for ``trainer.test`` and ``trainer.predict``.

    It has no projector, so its steps return features and labels, and no embeddings.

    Args:
        backbone: Name of the network, or its dotted path, as for a method.
        weights: The file, as in `duality_ssl.networks.weights.load_backbone`.
        in_channels: Channels of the images, 1 for grey ones.
        image_size: Side of the images in pixels, for a backbone whose weights depend on it.

    Raises:
        ValueError: If the file lacks a tensor of the backbone, or has it in another shape.
    """

    def __init__(
        self,
        backbone: str,
        weights: str | Path,
        in_channels: int | None = None,
        image_size: int | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = 3 if in_channels is None else in_channels
        self.backbone = build_backbone(backbone, self.in_channels, image_size)
        self.num_features: int = self.backbone.num_features  # type: ignore[assignment]
        self.weights = Path(weights)
        load_backbone(self.backbone, weights)

    def forward(self, images: Tensor) -> Tensor:
        """Compute features ``(N, F)`` of images ``(N, C, H, W)``."""
        features: Tensor = self.backbone(images)
        check_features(features, len(images), self.num_features)
        return features

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Return features and labels of one un-augmented view, for the callbacks."""
        images, labels = one_view(batch)
        return {"features": self(images), "labels": labels}

    predict_step = test_step

    def check_images(self, channels: int, size: int | None) -> None:
        """Raise ``ValueError`` for images that the backbone cannot take; ``size`` in pixels."""
        check_images(self.backbone, self.in_channels, channels, size)
