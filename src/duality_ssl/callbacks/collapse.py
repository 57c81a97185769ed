"""CollapseGuard: says early that a run learns nothing: it diverged, collapsed, or has no input."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from duality_ssl.batches import images_of
from duality_ssl.callbacks.finite import StepFaults, step_faults
from duality_ssl.callbacks.outputs import views
from duality_ssl.distributed import all_reduce_sum, process_group
from duality_ssl.functional import normalize_rows, rankme
from duality_ssl.runs.checkpoint import is_damaged

_COLLAPSED = (
    "Try a lower learning rate, a lower temperature, or a higher weight of the term that spreads "
    "the embeddings (variance, covariance, redundancy); and check that batches are not tiny."
)
_EXPLODED = "Try a lower learning rate (--model.base_lr) or --trainer.gradient_clip_val 1."
_OVERFLOW = "Take --trainer.precision bf16-mixed, or 32-true, in place of 16-mixed."
_NO_RATE = "Set --model.base_lr, --model.warmup_epochs or --model.scheduler otherwise."
_NO_IMAGES = "Look at --data.root and at what prepared it."
_ONE_DIMENSION = "Let --model.projector end in 2 or more."
_PAIR = "Set --data.batch_size higher."
_LOOKED_AT = 32  # images, before the first step
_LEAST_RATE = torch.finfo(torch.float32).tiny  # under it float32 rounds a step to 0


class GuardError(ValueError):
    """The guard ends a fit. The command line prints the sentence and exits with code 3.

    Neither 2, a mistake in the command, nor 1, a bug: numbers went wrong in a run that was well
    asked for. A job script sees by the code that starting it again as it was does not help.
    """


class CollapseGuard(Callback):
    r"""Warns, or ends the fit, when a run cannot learn or no longer does.

    Before the first step: a learning rate that is 0, images that are all the same or most of them
    of one colour. In the first step: embeddings of one dimension, batch norm of two rows. Then, at
    every check:

    - pixels, embeddings, loss or gradients were NaN or infinite in any step since the last check;
      the message names the batch and what of it came first: files, or tensors;
    - 16-mixed precision skipped every step since the last check, its loss scale being under 1;
    - the learning rate was 0 in every step since the last check;
    - the norm of the gradient or the mean norm of the embeddings is over ``max_growth`` times that
      of the first step;
    - the spread, :math:`\sqrt{D}\, \mathrm{mean}_j\, \mathrm{std}_i(z_{ij} / \|z_i\|)`, is under
      ``min_std``: 1 for directions spread over the sphere, 0 for one direction;
    - the effective rank (RankMe, not centred) is under ``min_rank``, or under a quarter of
      ``min(N, D)`` where that is less.

    Embeddings are those the criterion saw (all processes, first view). Growth and collapse are
    acted upon after ``patience`` checks in a row, the rest at once, with one warning of each kind a
    run. Whatever the action, a `GuardError` ends the fit where going on makes no sense: once a
    weight or a running statistic is not finite, and after ``patience`` checks in a row with a loss
    that is not, or with skipped steps alone. Between checks nothing waits for the device.

    Args:
        action: ``warn`` goes on training, ``stop`` ends the fit with an error.
        min_std: Least spread of the embeddings.
        min_rank: Least effective rank of the embeddings.
        every_n_steps: Batches between two checks; the first of a fit and the last of an epoch are
            checked too.
        patience: Checks in a row that must find the same run ill.
        max_samples: Most embeddings that a check looks at.
        max_growth: Most growth of a norm since the first step, as a factor.

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
        if every_n_steps < 1 or patience < 1 or max_samples < 2:
            raise ValueError(
                "Expected `every_n_steps` and `patience` of at least 1 and `max_samples` of at "
                f"least 2, but got {every_n_steps}, {patience} and {max_samples}."
            )
        if not max_growth > 1:
            raise ValueError(f"Expected `max_growth` above 1, but got {max_growth}.")
        self.action = action
        self.min_std = min_std
        self.min_rank = min_rank
        self.every_n_steps = every_n_steps
        self.patience = patience
        self.max_samples = max_samples
        self.max_growth = max_growth
        self._start_anew()

    def _start_anew(self) -> None:
        self._faults: list[StepFaults] = []  # of the steps since the last check
        self._rates: list[float] = []  # highest learning rate of each
        self._weights: list[nn.Parameter] = []  # those that had a gradient in the last step
        self._norms: Tensor | None = None  # of their gradients
        self._latest: Tensor  # embeddings of the last step, first view
        self._first_norms: dict[str, float] = {}
        self._strikes = 0
        self._said: set[str] = set()
        self._started = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start anew: each fit has its own warnings."""
        if stage == "fit":
            self._start_anew()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run is compared with, and for how many checks it has been ill."""
        return {"first_norms": self._first_norms, "strikes": self._strikes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with a resumed run."""
        self._first_norms, self._strikes = state_dict["first_norms"], state_dict["strikes"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the learning rate and at some images."""
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        rate = max(float(group.get("initial_lr", group["lr"])) for group in groups)
        if rate < _LEAST_RATE:
            what = f"the learning rate is {rate:g}, so that nothing will be learnt."
            self._act(trainer, "rate", what, _NO_RATE)
        glance = getattr(trainer.train_dataloader, "glance", None)
        if glance is not None:
            self._look_at(trainer, glance(_LOOKED_AT))

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Note the norms of the gradients, not clipped yet, and the learning rate."""
        groups = optimizer.param_groups
        self._weights = [p for group in groups for p in group["params"] if p.grad is not None]
        gradients = [p.grad for p in self._weights if p.grad is not None]
        if gradients:
            wide = torch.promote_types(gradients[0].dtype, torch.float32)  # half would overflow
            self._norms = torch.stack(torch._foreach_norm(gradients, 2, wide))
        # a tensor would have to be waited for
        rates = [math.inf if isinstance(g["lr"], Tensor) else g["lr"] for g in groups]
        self._rates.append(max(rates))

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Mapping[str, Any],  # type: ignore[override]
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Note on the device what was not finite; check when it is time."""
        embeddings, loss = views(outputs, "embeddings", "training_step"), outputs["loss"].detach()
        self._latest = embeddings[0]
        images = images_of(batch, len(self._latest))
        faults = step_faults(batch_idx, images, embeddings, loss, self._weights, self._norms)
        self._faults.append(faults)
        first, self._started = not self._started, True
        if first:
            self._look_at_batch(trainer, pl_module, images)
        if first or trainer.is_last_batch or (batch_idx + 1) % self.every_n_steps == 0:
            self._check(trainer, pl_module, first)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check what came after the last check of an epoch that was cut short."""
        if self._faults:
            self._check(trainer, pl_module)

    def _look_at(self, trainer: Trainer, images: Tensor) -> None:
        """Say so if the images ``(N, C, H, W)`` have nothing to tell apart."""
        pixels, n = images.flatten(2), len(images)
        plain = int((pixels.amax(2) == pixels.amin(2)).all(1).sum())
        if (images == images[:1]).all():
            self._act(trainer, "images", f"all of {n} images looked at are the same.", _NO_IMAGES)
        elif 2 * plain > n:
            what = f"{plain} of {n} images looked at are of one colour."
            self._act(trainer, "images", what, _NO_IMAGES)

    def _look_at_batch(
        self, trainer: Trainer, pl_module: LightningModule, images: Sequence[Tensor]
    ) -> None:
        known = images and images[0].ndim == 4
        if known and not hasattr(trainer.train_dataloader, "glance"):
            self._look_at(trainer, process_group().all_gather(images[0][:_LOOKED_AT]))
        if self._latest.shape[1] == 1:
            what = "the embeddings have one dimension: of its direction only the sign is left."
            self._act(trainer, "dimension", what, _ONE_DIMENSION)
        rows = len(self._latest) * (2 if getattr(pl_module, "joint_forward", False) else 1)
        if rows == 2 and any(isinstance(layer, nn.BatchNorm1d) for layer in pl_module.modules()):
            what = "batch norm of a batch of 2 makes each unit +1 or -1, whatever the images show."
            self._act(trainer, "pair", what, _PAIR)

    def _check(self, trainer: Trainer, pl_module: LightningModule, first: bool = False) -> None:
        faults, self._faults = self._faults, []
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        # a scaler expects gradients that are not finite: it skips the step and scales less
        bad = torch.stack([step.any(gradients=scaler is None) for step in faults])
        found = all_reduce_sum(bad.float()).nonzero()
        if len(found):
            self._act_on_fault(trainer, pl_module, faults[int(found[0])])
            return
        if scaler is not None and _is_stuck(scaler, faults):
            self._strikes += 1
            what = (
                f"all {len(faults)} steps since the last check overflowed in float16 and were "
                f"skipped; the loss scale is down to {scaler.get_scale():.3g}."
            )
            self._act(trainer, "overflow", what, _OVERFLOW, fatal=self._strikes >= self.patience)
            return
        if len(self._rates) > 1:  # the first step of a warm-up may have a rate of 0
            if max(self._rates) < _LEAST_RATE:
                what = f"the learning rate was 0 in each of {len(self._rates)} steps."
                self._act(trainer, "rate", what, _NO_RATE)
            self._rates.clear()
        z = process_group().all_gather(self._latest)[: self.max_samples]
        growth, collapse = self._growth(z), self._collapse(z)
        if first:  # a fit that has just begun, or goes on, is not judged by it
            return
        self._strikes = self._strikes + 1 if growth or collapse else 0
        if self._strikes < self.patience:
            return
        if growth:
            self._act(trainer, "growth", growth, _EXPLODED)
        elif collapse:
            what = f"the embeddings have collapsed: {collapse}."
            self._act(trainer, "collapse", what, _COLLAPSED)

    def _growth(self, z: Tensor) -> str | None:
        """Which norm has exploded; None if none has."""
        norms = {} if self._norms is None else {"norm of the gradient": self._norms.norm()}
        norms["mean norm of the embeddings"] = z.float().norm(dim=1).mean()
        for name, norm in norms.items():
            value = norm.item()
            if not value or not math.isfinite(value):  # a step that a scaler has skipped
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
        """Say what was not finite in a step; end the fit if that has damaged the weights."""
        self._strikes += 1
        names = getattr(trainer.train_dataloader, "names", None)
        own = process_group().own(len(step.images))
        rows = [f"row {i}" for i in range(own.start, own.stop)]
        images = rows if names is None else names(step.batch_idx)
        what, remedy = step.culprit(images, pl_module)
        what = f"in batch {step.batch_idx + 1} of epoch {trainer.current_epoch + 1} {what}"
        damaged = is_damaged(pl_module)
        if damaged:
            what += " The weights are not finite any more, which no step heals."
        self._act(trainer, "fault", what, remedy, fatal=damaged or self._strikes >= self.patience)

    def _act(
        self, trainer: Trainer, kind: str, what: str, remedy: str, fatal: bool = False
    ) -> None:
        """Warn once a run of each kind, or end the fit."""
        message = f"Step {trainer.global_step}: {what} {remedy}"
        if fatal or self.action == "stop":
            raise GuardError(f"{message} Training stops here; {_kept(trainer)}")
        if kind not in self._said:
            self._said.add(kind)
            rank_zero_warn(message)


def _is_stuck(scaler: torch.amp.GradScaler, steps: Sequence[StepFaults]) -> bool:
    """Whether the scaler has skipped all steps, and gradients overflow however small it scales."""
    skipped = torch.stack([step.gradients.any() for step in steps])
    return scaler.get_scale() < 1 and bool(skipped.all())


def _kept(trainer: Trainer) -> str:
    """Which checkpoints there are; those of this package have finite weights."""
    paths = [Path(getattr(c, "best_model_path", "")) for c in trainer.checkpoint_callbacks]
    kept = [str(path) for path in paths if path.is_file()]
    return f"kept from before: {', '.join(kept)}." if kept else "no checkpoint was written before."
