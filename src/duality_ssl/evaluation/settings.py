"""What the offline protocols leave open."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Options of the offline protocols, the same for every method.

    Args:
        k: Neighbours that vote in the k-NN.
        temperature: Temperature of the neighbours' votes.
        max_linear_samples: Most training samples that the logistic regression is fitted on.
        labels_per_class: Labelled samples a class in the few-label protocol.
        few_label_draws: Seeded draws that the few-label protocol averages over.

    Raises:
        ValueError: If one of them is not positive.
    """

    k: int = 5
    temperature: float = 0.07
    max_linear_samples: int = 50_000
    labels_per_class: int = 5
    few_label_draws: int = 20

    def __post_init__(self) -> None:
        """Refuse a number that no protocol can take, before features are computed."""
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"Expected `evaluation.{name}` to be above 0, but got {value}.")


DEFAULTS = Settings()
