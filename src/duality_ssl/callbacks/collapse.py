"""CollapseGuard: says early that a run diverged or that its embeddings collapsed."""

from collections.abc import Mapping
from typing import Any, Literal

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from duality_ssl.distributed import all_reduce_sum, processes
from duality_ssl.functional import normalize_rows, rankme

_DIVERGED = (
    "Try a lower learning rate (--model.base_lr), a longer warm-up (--model.warmup_epochs), or "
    "precision 32-true or bf16-mixed in place of 16-mixed."
)
_COLLAPSED = (
    "Try a lower learning rate, a lower temperature, or a higher weight of the term that spreads "
    "the embeddings (variance, covariance, redundancy); and check that batches are not tiny."
)


class CollapseGuard(Callback):
    r"""Warns, or stops the run, when the loss is not finite or the embeddings collapse.

    Checks, on the embeddings the criterion saw (all processes, first view):

    - the loss was NaN or infinite in any step since the last check: acted upon at once;
    - the spread, :math:`\sqrt{D}\, \mathrm{mean}_j\, \mathrm{std}_i(z_{ij} / \|z_i\|)`, is under
      ``min_std``: 1 for directions spread over the sphere, 0 for one direction;
    - the effective rank (RankMe, not centred) is under ``min_rank``, or under a quarter of
      ``min(N, D)`` where that is less.

    A collapse is acted upon after ``patience`` checks in a row. One warning is given a run. Between
    checks nothing waits for the device.

    Args:
        action: ``warn`` goes on training, ``stop`` ends the run after this batch.
        min_std: Least spread of the embeddings.
        min_rank: Least effective rank of the embeddings.
        every_n_steps: Batches between two checks; the end of an epoch is checked too.
        patience: Checks in a row that must find a collapse.
        max_samples: Most embeddings that a check looks at.

    Raises:
        ValueError: For an unknown action, or a number out of range.
    """

    def __init__(
        self,
        action: Literal["warn", "stop"] = "warn",
        min_std: float = 0.05,
        min_rank: float = 3.0,
        every_n_steps: int = 50,
        patience: int = 3,
        max_samples: int = 1024,
    ) -> None:
        if action not in ("warn", "stop"):
            raise ValueError(f"Expected `action` to be 'warn' or 'stop', but got {action!r}.")
        if every_n_steps < 1 or patience < 1 or max_samples < 2:
            raise ValueError(
                "Expected `every_n_steps` and `patience` of at least 1 and `max_samples` of at "
                f"least 2, but got {every_n_steps}, {patience} and {max_samples}."
            )
        self.action = action
        self.min_std = min_std
        self.min_rank = min_rank
        self.every_n_steps = every_n_steps
        self.patience = patience
        self.max_samples = max_samples
        self._not_finite: Tensor | None = None
        self._latest: Tensor | None = None
        self._strikes = 0
        self._warned = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start anew: each run has its own warning."""
        self._not_finite, self._latest, self._strikes, self._warned = None, None, 0, False

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Mapping[str, Any],  # type: ignore[override]
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Remember on the device whether the loss was finite; check when it is time."""
        bad = ~outputs["loss"].detach().isfinite()
        self._not_finite = bad if self._not_finite is None else self._not_finite | bad
        self._latest = outputs["embeddings"][0].detach()
        if (batch_idx + 1) % self.every_n_steps == 0:
            self._check(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check what came after the epoch's last check."""
        self._check(trainer)

    def _check(self, trainer: Trainer) -> None:
        if self._not_finite is None or self._latest is None:
            return
        not_finite = bool(all_reduce_sum(self._not_finite.float()) > 0)
        z = processes().rows(self._latest)[: self.max_samples]
        self._not_finite, self._latest = None, None
        if not_finite or not z.isfinite().all():
            self._act(trainer, "The loss or the embeddings are NaN or infinite.", _DIVERGED)
            return
        reason = self._collapse(z)
        self._strikes = self._strikes + 1 if reason else 0
        if reason and self._strikes >= self.patience:
            self._act(trainer, f"The embeddings have collapsed: {reason}.", _COLLAPSED)

    def _collapse(self, z: Tensor) -> str | None:
        """How the embeddings have collapsed; None if they have not."""
        n, d = z.shape
        rows = normalize_rows(z)
        spread = (rows.std(dim=0).mean() * d**0.5).item()
        if spread < self.min_std:
            return f"the spread of their directions is {spread:.3g}, under min_std={self.min_std:g}"
        rank, least = rankme(z).item(), min(self.min_rank, min(n, d) / 4)
        if rank < least:
            return f"their effective rank is {rank:.3g} of {min(n, d)}, under {least:g}"
        return None

    def _act(self, trainer: Trainer, what: str, remedy: str) -> None:
        stop = self.action == "stop"
        if stop:
            trainer.should_stop = True
        if not self._warned:
            end = " Training stops here." if stop else ""
            rank_zero_warn(f"Step {trainer.global_step}: {what} {remedy}{end}")
            self._warned = True
