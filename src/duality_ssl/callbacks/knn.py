"""The online k-NN: weighted neighbours among the latest training features."""

import math
from collections import deque
from typing import Any

import torch
from lightning import LightningModule, Trainer
from torch import Tensor

from duality_ssl.callbacks.labelled import LabelledCallback
from duality_ssl.distributed import all_gather_rows, rank, world_size
from duality_ssl.evaluation import Settings, knn_votes


class FeatureBank:
    """At most ``capacity`` features and their labels, oldest first, on the features' own device."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._batches: deque[tuple[Tensor, Tensor]] = deque()

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Add rows ``(N, F)`` and labels ``(N,)``; drop batches that are too old."""
        self._batches.append((features, labels))
        held = sum(len(labels) for _, labels in self._batches)
        while held - len(self._batches[0][1]) >= self.capacity:
            held -= len(self._batches.popleft()[1])

    def state_dict(self) -> dict[str, Any]:
        """Gather the rows of all processes' banks."""
        parts = zip(("features", "labels"), zip(*self._batches, strict=True), strict=True)
        return {name: all_gather_rows(torch.cat(part)[-self.capacity :]) for name, part in parts}

    def gather(self) -> tuple[Tensor, Tensor]:
        """Gather features and labels of all processes' banks, labelled rows only."""
        features, labels = self.state_dict().values()
        return features[labels >= 0], labels[labels >= 0]

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Add this process's share of the rows of a state."""
        rows = state["features"].to(device), state["labels"].to(device)
        features, labels = (part.tensor_split(world_size())[rank()] for part in rows)
        self.add(features, labels)


class OnlineKNN(LabelledCallback):
    """Weighted k-NN accuracy on the validation set, with no training and no second forward pass.

    The neighbours are the features of the training steps of the last epoch (all augmented views, as
    the network was then), at most ``bank_size`` of them over all processes. If the pretraining data
    has no labels but the data module has a labelled set for probing (``probe_is_pretrain`` False),
    they are that set's features, of the same validation. The bank of all processes is in the
    checkpoint.

    Logs ``val/knn_top1`` and ``val/knn_top5`` (more than 5 classes) as fractions, each validation
    sample counted once.

    Args:
        k: Neighbours that vote; clamped to the size of the bank.
        temperature: Temperature T of the votes ``exp(cosine / T)``.
        bank_size: Most features to search, over all processes.
        num_classes: Number of classes; by default that of the data module. With it, the callback
            works with any module whose steps return ``features`` and ``labels``, see
            docs/monitoring.md.

    Raises:
        ValueError: If an argument is not positive, or a step returns something else.

    Source: Wu et al., CVPR 2018, section 3.4, https://arxiv.org/abs/1805.01978
    """

    def __init__(
        self,
        k: int = 20,
        temperature: float = Settings.temperature,
        bank_size: int = 16_384,
        num_classes: int | None = None,
    ) -> None:
        super().__init__(["features"], num_classes)
        if k < 1 or bank_size < 1 or not temperature > 0:
            raise ValueError(
                "Expected `k` and `bank_size` of at least 1 and `temperature` above 0, but got "
                f"k={k}, bank_size={bank_size}, temperature={temperature}."
            )
        self.k, self.temperature, self.bank_size = k, temperature, bank_size
        self._bank: FeatureBank | None = None
        self._restored: dict[str, Any] = {}
        self._gathered: tuple[Tensor, Tensor] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The bank, if it has features of training batches."""
        return self._restored if self._bank is None else self._bank.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the bank is needed, on the module's device."""
        self._restored = state_dict

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start with an empty bank, or that of the checkpoint."""
        self._bank = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the bank of a checkpoint, or start anew with a labelled set."""
        self._gathered = None
        if trainer.sanity_checking:
            return
        if self.learns_in_validation(trainer):
            self._bank = None
        elif self._bank is None and self._restored and self.num_classes is not None:
            self._bank = self._new_bank(self._share, pl_module.device)

    def learn(
        self, trainer: Trainer, pl_module: LightningModule, rows: dict[str, Tensor], batch_idx: int
    ) -> None:
        """Add the features to the bank."""
        if self._bank is None:
            capacity = self._share
            if not self.learns_in_validation(trainer):
                # older features come from an outdated network: one epoch is enough
                epoch = trainer.num_training_batches * len(rows["labels"])
                capacity = int(min(capacity, epoch))
            self._bank = self._new_bank(capacity, pl_module.device)
        self._bank.add(rows["features"], rows["labels"])

    def scores(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """Count the votes of the neighbours in the bank of all processes."""
        if self._bank is None:
            return {}
        if self._gathered is None:
            self._gathered = self._bank.gather()
        bank, labels = self._gathered
        if not len(bank):
            return {}
        queries, classes = rows["features"], self.num_classes or 0
        votes = knn_votes(bank, labels, queries, classes, k=self.k, temperature=self.temperature)
        return {"knn": votes}

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_epoch_end(trainer, pl_module)
        self._gathered = None
        if self.learns_in_validation(trainer):
            self._bank = None

    def _new_bank(self, capacity: int, device: torch.device) -> FeatureBank:
        """Build a bank with the rows of the checkpoint, if it has any."""
        bank, state, self._restored = FeatureBank(capacity), self._restored, {}
        if state:
            bank.load_state_dict(state, device)
        return bank

    @property
    def _share(self) -> int:
        """Rows of the bank that one process keeps."""
        return math.ceil(self.bank_size / world_size())
