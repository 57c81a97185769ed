"""What the offline protocols leave open."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

QUICK = ("linear", "knn", "few_label", "ranks", "spectrum", "geometry", "views")
"""Protocols that run unless others are named."""


@dataclass(frozen=True)
class Settings:
    """Options of the offline protocols, the same for every method.

    Args:
        protocols: Names of the protocols to run: keys of `LABELLED`, `LABEL_FREE` and `OF_NETWORK`.
        k: Neighbors that vote in the k-NN; one number, or several for one search.
        temperature: Temperature of the neighbors' votes.
        max_linear_samples: Most training samples that a logistic regression is fitted on.
        labels_per_class: Labelled samples a class in the few-label protocol.
        few_label_draws: Seeded draws that the protocols with few labels average over.
        batch_size: Images of a step of ``linear_sgd`` and ``finetune``.
        sgd_epochs: Epochs of ``linear_sgd``.
        sgd_learning_rates: Learning rates for 256 images that ``linear_sgd`` chooses from.
        finetune_epochs: Epochs of ``finetune``.
        finetune_optimizer: "sgd" or "adamw".
        finetune_lr: Its learning rate for 256 images; 0.05 suits "sgd", 0.001 "adamw".
        finetune_fractions: Parts of the labelled training images to fine-tune on, in turn.

    Raises:
        ValueError: If a number is not positive, or a list is empty.
    """

    protocols: Sequence[str] = QUICK
    k: int | Sequence[int] = 5
    temperature: float = 0.07
    max_linear_samples: int = 50_000
    labels_per_class: int = 5
    few_label_draws: int = 20
    batch_size: int = 256
    sgd_epochs: int = 100
    sgd_learning_rates: Sequence[float] = (0.01, 0.03, 0.1, 0.3, 1.0)
    finetune_epochs: int = 30
    finetune_optimizer: Literal["sgd", "adamw"] = "sgd"
    finetune_lr: float = 0.05
    finetune_fractions: Sequence[float] = (1.0,)

    def __post_init__(self) -> None:
        """Refuse a number that no protocol can take, before features are computed."""
        for name, value in vars(self).items():
            numbers = value if isinstance(value, tuple | list) else [value]
            if not numbers:
                raise ValueError(f"Expected `evaluation.{name}` to name at least one, got none.")
            if not all(isinstance(number, str) or number > 0 for number in numbers):
                raise ValueError(f"Expected `evaluation.{name}` to be above 0, but got {value}.")

    @property
    def ks(self) -> tuple[int, ...]:
        """The numbers of neighbors, without repetition."""
        return tuple(dict.fromkeys([self.k] if isinstance(self.k, int) else self.k))


DEFAULTS = Settings()
