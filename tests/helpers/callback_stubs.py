"""A module and a data module with the contracts that the callbacks rely on, and nothing else."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from helpers.fits import trainer as trainer
from lightning import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Subset, TensorDataset

from duality_ssl.distributed import rank, world_size

CLASSES = 8


def blobs(
    n: int, classes: int = CLASSES, seed: int = 0, spread: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Grey 4x4 images around one centre a class: separable, not quite."""
    centres = torch.randn(classes, 1, 4, 4, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    return centres[labels] + spread * torch.randn(n, 1, 4, 4, generator=generator), labels


def two_views(samples: Sequence[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], Tensor]:
    """Two functions of the image: the same views however samples are dealt out to processes."""
    images = torch.stack([image for image, _ in samples])
    views = [images + 0.1 * (7 * images).sin(), images - 0.1 * (5 * images).cos()]
    return views, torch.stack([label for _, label in samples])


def one_view(samples: Sequence[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], Tensor]:
    images = torch.stack([image for image, _ in samples])
    return [images], torch.stack([label for _, label in samples])


class StubData(LightningDataModule):
    """Blobs; ``labels`` is "own" (pretraining batches have them), "probe" (another set) or None."""

    channels, image_size = 1, 4

    def __init__(
        self,
        labels: str | None = "own",
        classes: int = CLASSES,
        n: int = 128,
        n_val: int = 50,
        n_probe: int = 128,
        batch_size: int = 32,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.num_classes = None if labels is None else classes
        self.probe_is_pretrain = labels != "probe"
        self.class_names = [str(c) for c in range(classes)]
        images, y = blobs(n, classes)
        self.train = TensorDataset(images, y if labels == "own" else torch.full_like(y, -1))
        self.probe = TensorDataset(*blobs(n_probe, classes, seed=1))
        val, y_val = blobs(n_val, classes, seed=2)
        self.val = TensorDataset(val, torch.full_like(y_val, -1) if labels is None else y_val)

    def _loader(self, dataset: TensorDataset, collate: Any, batch_size: int = 32) -> DataLoader:
        mine = Subset(dataset, range(rank(), len(dataset), world_size()))
        return DataLoader(mine, batch_size=batch_size, collate_fn=collate)

    def train_dataloader(self) -> DataLoader:
        return self._loader(self.train, two_views, self.batch_size)

    def val_dataloader(self) -> list[DataLoader]:
        val = self._loader(self.val, one_view, 20)
        probe = self._loader(self.probe, one_view, self.batch_size)
        return [val] if self.probe_is_pretrain else [probe, val]

    def test_dataloader(self) -> list[DataLoader]:
        train = self.train if self.probe_is_pretrain else self.probe
        return [self._loader(train, one_view), self._loader(self.val, one_view)]

    def predict_dataloader(self) -> DataLoader:
        return self._loader(self.val, one_view)


class StubModule(LightningModule):
    """A linear backbone and projector whose loss keeps embeddings of two views alike.

    Args:
        scale: Factor of the features.
        loss: What the loss is multiplied by at each step; NaN for a run that diverges.
        collapse: Make all embeddings the same.
    """

    def __init__(
        self, scale: float = 1.0, loss: float = 1.0, collapse: bool = False, lr: float = 1e-3
    ) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.backbone = nn.Sequential(nn.Flatten(), nn.Linear(16, 12))
            self.projector = nn.Linear(12, 10, bias=False)
        self.backbone.num_features = 12
        self.embedding_dim = 10
        self.scale, self.loss_factor, self.collapse, self.lr = scale, loss, collapse, lr
        self.forwards = 0

    def _features(self, images: Tensor) -> Tensor:
        self.forwards += 1
        return self.scale * self.backbone(images)

    def _embed(self, features: Tensor) -> Tensor:
        z = self.projector(features / self.scale)
        return z * 0 + torch.arange(1.0, 11) if self.collapse else z

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        views, labels = batch
        features = [self._features(view) for view in views]
        z1, z2 = (self._embed(h) for h in features)
        loss = self.loss_factor * (z1 - z2).square().mean()
        self.log("train/loss", loss, prog_bar=True)
        embeddings = (z1.detach(), z2.detach())
        return {
            "loss": loss,
            "features": tuple(h.detach() for h in features),
            "embeddings": embeddings,
            "labels": labels,
        }

    def _represent(self, batch: Any) -> dict[str, Tensor]:
        (images,), labels = batch
        features = self._features(images)
        return {"features": features, "embeddings": self._embed(features), "labels": labels}

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict:
        return self._represent(batch)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict:
        return self._represent(batch)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict:
        return self._represent(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class PlainModule(LightningModule):
    """Anybody's module: a step returns features and labels, and says nothing of its network.

    Args:
        entry: What a training step returns, of its loss, features and labels.
        val_entry: What a validation step returns, of its features and labels.
    """

    def __init__(
        self,
        entry: Callable[[Tensor, Tensor], Any] = lambda h, y: {"features": h, "labels": y},
        val_entry: Callable[[Tensor, Tensor], Any] = lambda h, y: {"features": h, "labels": y},
    ) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh())
            self.head = nn.Linear(12, CLASSES)
        self.entry, self.val_entry = entry, val_entry

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        images, labels = batch
        h = self.net(images)
        return {"loss": cross_entropy(self.head(h), labels), **self.entry(h, labels)}

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        images, labels = batch
        return self.val_entry(self.net(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def plain_loaders() -> tuple[DataLoader, DataLoader]:
    """Labelled images for training and validation, as anybody has them."""
    sets = (TensorDataset(*blobs(128)), TensorDataset(*blobs(50, seed=2)))
    return DataLoader(sets[0], batch_size=32), DataLoader(sets[1], batch_size=20)
