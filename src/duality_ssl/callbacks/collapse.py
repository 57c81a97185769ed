"""CollapseGuard: warns early of a run that diverged, collapsed, or has nothing to learn from."""

import math
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from duality_ssl._internals.torch import foreach_norm
from duality_ssl.batches import images_of
from duality_ssl.callbacks.finite import StepFaults, step_faults
from duality_ssl.callbacks.outputs import views
from duality_ssl.distributed import all_reduce_sum, process_group
from duality_ssl.functional import normalize_rows, rankme
from duality_ssl.runs.checkpoint import is_damaged

_REMEDIES = {
    "collapse": "Try a lower learning rate, a lower temperature, or a higher weight of the term "
    "that spreads the embeddings (variance, covariance, redundancy); and check that batches are "
    "not tiny.",
    "growth": "Try a lower learning rate (--model.base_lr) or --trainer.gradient_clip_val 1.",
    "overflow": "Take --trainer.precision bf16-mixed, or 32-true, in place of 16-mixed.",
    "rate": "Set --model.base_lr higher.",
    "images": "Look at --data.root and at what prepared it.",
}
_LOOKED_AT = 32  # images, before the first step
_LEAST_RATE = torch.finfo(torch.float32).tiny  # float32 rounds a step of a lower rate to 0


class GuardError(ValueError):
    """The guard ends a fit: the same run would fail again. The command exits with code 3."""


class CollapseGuard(Callback):
    r"""Warns, or ends the fit, if a run cannot learn or has stopped learning.

    Before the first step: the learning rate is 0, all images are equal, or most are of one colour.
    At every check:

    - pixels, embeddings, loss or gradients were NaN or infinite in a step since the last check; the
      message names the batch and the first of these, with its files or tensors;
    - 16-mixed precision skipped every step since the last check, with a loss scale under 1;
    - the norm of the gradient or the mean norm of the embeddings is over ``max_growth`` times that
      of the first step;
    - the spread, :math:`\sqrt{D}\, \mathrm{mean}_j\, \mathrm{std}_i(z_{ij} / \|z_i\|)`, is under
      ``min_std``: 1 for directions spread over the sphere, 0 for one direction;
    - the effective rank (RankMe, not centred) is under ``min_rank``, or under a quarter of
      ``min(N, D)`` if that is less.

    Embeddings are those of the criterion (all processes, first view). Growth and collapse need
    ``patience`` checks in a row; each kind is warned of once a run. Whatever the action, a
    `GuardError` ends the fit if a weight or a running statistic is not finite, or after
    ``patience`` checks in a row with a fault or with skipped steps only.

    Args:
        action: ``warn`` continues the training, ``stop`` ends the fit with an error.
        min_std: Least spread of the embeddings.
        min_rank: Least effective rank of the embeddings.
        every_n_steps: Batches between two checks; the first of a fit and the last of an epoch are
            checked too.
        patience: Failed checks in a row before the guard acts.
        max_samples: Most embeddings in a check.
        max_growth: Largest factor of a norm over that of the first step.

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
        max_growth: float = 1000.0,
    ) -> None:
        if action not in ("warn", "stop"):
            raise ValueError(f"Expected `action` to be 'warn' or 'stop', but got {action!r}.")
        if every_n_steps < 1 or patience < 1 or max_samples < 2 or not max_growth > 1:
            raise ValueError(
                "Expected `every_n_steps` and `patience` of at least 1, `max_samples` of at least "
                "2 and `max_growth` above 1, but got "
                f"{every_n_steps}, {patience}, {max_samples} and {max_growth}."
            )
        self.action = action
        self.min_std, self.min_rank, self.max_growth = min_std, min_rank, max_growth
        self.every_n_steps, self.patience, self.max_samples = every_n_steps, patience, max_samples

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._faults: list[StepFaults] = []  # of the steps since the last check
        self._weights: list[nn.Parameter] = []  # those that had a gradient in the last step
        self._norms: Tensor | None = None  # norms of their gradients
        self._latest: Tensor  # embeddings of the last step, first view
        self._first_norms: dict[str, float] = {}
        self._strikes = 0
        self._warned: set[str] = set()
        self._started = False

    def state_dict(self) -> dict[str, Any]:
        return {"first_norms": self._first_norms, "strikes": self._strikes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._first_norms, self._strikes = state_dict["first_norms"], state_dict["strikes"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the learning rate and some images."""
        groups = [group for each in trainer.optimizers for group in each.param_groups]
        rate = max(float(group.get("initial_lr", group["lr"])) for group in groups)
        if rate < _LEAST_RATE:
            self._act(trainer, "rate", f"the learning rate is {rate:g}, so that nothing is learnt.")
        if glance := getattr(trainer.train_dataloader, "glance", None):
            self._look_at(trainer, glance(_LOOKED_AT))

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Record the norms of the gradients, before clipping."""
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        self._weights = [weight for weight in weights if weight.grad is not None]
        if gradients := [p.grad for p in self._weights if p.grad is not None]:
            wide = torch.promote_types(gradients[0].dtype, torch.float32)  # half would overflow
            self._norms = torch.stack(list(foreach_norm(gradients, 2, wide)))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record on the device what was not finite; check if it is time."""
        embeddings, loss = views(outputs, "embeddings", "training_step"), outputs["loss"].detach()
        self._latest = embeddings[0]
        images = images_of(batch, len(self._latest))
        faults = step_faults(batch_idx, images, embeddings, loss, self._weights, self._norms)
        self._faults.append(faults)
        first, self._started = not self._started, True
        if first or trainer.is_last_batch or (batch_idx + 1) % self.every_n_steps == 0:
            self._check(trainer, pl_module, first)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the steps after the last check of an epoch that was cut short."""
        if self._faults:
            self._check(trainer, pl_module)

    def _look_at(self, trainer: Trainer, images: Tensor) -> None:
        """Act if the images ``(N, C, H, W)`` do not differ, or most are of one colour."""
        pixels, n = images.flatten(2), len(images)
        plain = int((pixels.amax(2) == pixels.amin(2)).all(1).sum())
        if (images == images[:1]).all():
            self._act(trainer, "images", f"all of {n} images looked at are the same.")
        elif 2 * plain > n:
            self._act(trainer, "images", f"{plain} of {n} images looked at are of one colour.")

    def _check(self, trainer: Trainer, pl_module: LightningModule, first: bool = False) -> None:
        faults, self._faults = self._faults, []
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        # a scaler handles gradients that are not finite: it skips the step and lowers its scale
        bad = torch.stack([step.any(gradients=scaler is None) for step in faults])
        found = all_reduce_sum(bad.float()).nonzero()
        if len(found):
            self._act_on_fault(trainer, pl_module, faults[int(found[0])])
            return
        skipped = torch.stack([step.gradients.any() for step in faults])
        if scaler is not None and scaler.get_scale() < 1 and skipped.all():
            self._strikes += 1
            what = (
                f"all {len(faults)} steps since the last check overflowed in float16 and were "
                f"skipped; the loss scale is down to {scaler.get_scale():.3g}."
            )
            self._act(trainer, "overflow", what, fatal=self._strikes >= self.patience)
            return
        z = process_group().all_gather(self._latest)[: self.max_samples]
        growth, collapse = self._growth(z), self._collapse(z)
        if first:  # it only sets the norms to compare with
            return
        self._strikes = self._strikes + 1 if growth or collapse else 0
        if self._strikes < self.patience:
            return
        if growth:
            self._act(trainer, "growth", growth)
        else:
            self._act(trainer, "collapse", f"the embeddings have collapsed: {collapse}.")

    def _growth(self, z: Tensor) -> str | None:
        """Which norm has exploded; None if none has."""
        norms = {} if self._norms is None else {"norm of the gradient": self._norms.norm()}
        norms["mean norm of the embeddings"] = z.float().norm(dim=1).mean()
        for name, norm in norms.items():
            value = norm.item()
            if not value or not math.isfinite(value):  # of a step that a scaler has skipped
                continue
            before = self._first_norms.setdefault(name, value)
            if value > self.max_growth * before:
                return f"the {name} has exploded, from {before:.3g} to {value:.3g}."
        return None

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

    def _act_on_fault(self, trainer: Trainer, pl_module: LightningModule, step: StepFaults) -> None:
        """Act on a step that was not finite; end the fit if it has damaged the weights."""
        self._strikes += 1
        names = getattr(trainer.train_dataloader, "names", None)
        own = process_group().own(len(step.images))
        rows = [f"row {i}" for i in range(own.start, own.stop)]
        images = rows if names is None else names(step.batch_idx)
        what, remedy = step.culprit(images, pl_module)
        what = f"in batch {step.batch_idx + 1} of epoch {trainer.current_epoch + 1} {what}"
        if damaged := is_damaged(pl_module):
            what += " The weights are not finite any more, and no step can repair them."
        self._act(trainer, "fault", f"{what} {remedy}", damaged or self._strikes >= self.patience)

    def _act(self, trainer: Trainer, kind: str, what: str, fatal: bool = False) -> None:
        """Warn once of each kind, or end the fit."""
        message = f"Step {trainer.global_step}: {what} {_REMEDIES.get(kind, '')}".rstrip()
        if fatal or self.action == "stop":
            raise GuardError(f"{message} Training stops here; {_kept(trainer)}")
        if kind not in self._warned:
            self._warned.add(kind)
            rank_zero_warn(message)


def _kept(trainer: Trainer) -> str:
    """Name the checkpoints of the run; those of this package have finite weights."""
    paths = [Path(getattr(c, "best_model_path", "")) for c in trainer.checkpoint_callbacks]
    kept = [str(path) for path in paths if path.is_file()]
    return f"kept from before: {', '.join(kept)}." if kept else "no checkpoint was written before."
