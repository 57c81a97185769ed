"""The online linear probe: a linear classifier on detached features, trained alongside."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from duality_ssl.callbacks.labelled import Accuracies, LabelledCallback, is_validation_set
from duality_ssl.callbacks.means import EpochMeans
from duality_ssl.distributed import (
    all_gather_rows,
    all_reduce_sum,
    average_gradients,
    world_size,
)

Representation = Literal["backbone", "projector"]
# of a representation: its entry in a step's outputs, and its name in the logs
_OUTPUTS: dict[str, str] = {"backbone": "features", "projector": "embeddings"}
_NAMES: dict[str, str] = {"backbone": "probe", "projector": "probe_projector"}


class StandardizedLinear(nn.Module):
    r"""A linear classifier of features standardised by their running mean and variance.

    .. math:: \frac{1}{\sqrt{F}}\, W \frac{h - \mu}{\sigma} + b, \qquad
        \sigma \ge 10^{-6} |\mu| + 10^{-12}

    No scale or shift of the features changes what it learns, and :math:`1/\sqrt F` lets one
    learning rate serve every width. The statistics are those of the whole batch over all
    processes; the weights start at zero, so that processes agree. A feature that is constant but
    for rounding counts as zero.

    Args:
        num_features: Number F of features.
        num_classes: Number C of classes.
        momentum: Weight of the newest batch in the running statistics (the first batches are
            averaged evenly).
    """

    def __init__(self, num_features: int, num_classes: int, momentum: float = 0.1) -> None:
        super().__init__()
        # no draw of random numbers: the first step of a fit builds it, and no other would differ
        self.linear = nn.utils.skip_init(nn.Linear, num_features, num_classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("var", torch.ones(num_features))
        self.mean: Tensor
        self.var: Tensor

    @torch.no_grad()
    def observe(self, h: Tensor, mask: Tensor, count: Tensor, step: int) -> None:
        """Move the statistics towards those of a batch.

        Args:
            h: Features ``(N, F)`` of this process.
            mask: ``(N, 1)``, 1 for the samples that count, else 0.
            count: How many count over all processes; with none the statistics stay.
            step: Number of batches seen before.
        """
        some, count = count > 0, count.clamp(min=1)
        mean = all_reduce_sum((h * mask).sum(0)) / count
        # two passes: E[h^2] - E[h]^2 cancels where the mean is large
        var = all_reduce_sum(((h - mean).square() * mask).sum(0)) / count
        weight = max(self.momentum, 1 / (step + 1)) * some
        self.mean.lerp_(mean, weight)
        self.var.lerp_(var, weight)

    def forward(self, h: Tensor) -> Tensor:
        """Logits ``(N, C)`` of features ``(N, F)``."""
        std = self.var.sqrt()
        # what rounding leaves of a constant feature must not be blown up to variance 1
        constant = std <= 1e-6 * self.mean.abs() + 1e-12
        scale = std.masked_fill(constant, torch.inf).reciprocal() * len(std) ** -0.5
        return self.linear((h.float() - self.mean) * scale)


class OnlineLinearProbe(LabelledCallback):
    r"""Linear probes on detached features of the training step, with an optimiser of their own.

    After every training batch each probe takes one AdamW step on the cross-entropy of the features
    that the step returned (all views count); nothing flows back into the network and no image is
    read or encoded again. Features are standardised (:class:`StandardizedLinear`), heads are
    float32 whatever the precision of the network, gradients are those of the global batch, and the
    learning rate falls to 0 along a cosine over the run.

    Where the pretraining data has no labels and the data module has a labelled set for probing
    (``probe_is_pretrain`` False), the heads learn from that set's features at each validation, with
    one cosine a validation, and keep what they have learnt for the next; mean and variance start
    anew. A fit that goes on with the same trainer (more epochs) goes on with the heads.

    Logs ``train/probe_loss``, ``train/probe_top1`` (means over an epoch), ``val/probe_top1`` and
    ``val/probe_top5`` (more than 5 classes), each sample counted once; for the projector
    ``probe_projector`` in place of ``probe``. Accuracies are fractions. Heads, statistics and
    optimiser are in the checkpoint.

    Args:
        representations: What is probed: ``backbone``, the features that are kept after
            pretraining, ``projector``, the embeddings the criterion sees, or both.
        learning_rate: Peak learning rate of AdamW. From 0.1 to 1 it does well for
            features of 128 and of 2048 dimensions and runs of 75 steps or more.
        weight_decay: Weight decay of AdamW.
        num_classes: Number of classes; by default that of the data module. With it, the probe works
            in any Trainer: ``training_step`` and ``validation_step`` return a dict with
            ``features`` (``embeddings`` for the projector), ``(N, F)`` or a tuple of one a view,
            and ``labels`` ``(N,)``.

    Raises:
        ValueError: For an unknown representation, a checkpoint with heads of other shapes, or a
            step that returns something else.

    Source: supplement C of Garrido et al., ICLR 2023: the online classifier tracks the offline one.
    """

    def __init__(
        self,
        representations: Sequence[Representation] = ("backbone",),
        learning_rate: float = 0.3,
        weight_decay: float = 1e-4,
        num_classes: int | None = None,
    ) -> None:
        super().__init__(num_classes)
        unknown = [name for name in representations if name not in _OUTPUTS]
        if unknown or not representations:
            raise ValueError(
                f"Expected `representations` to be some of {sorted(_OUTPUTS)}, "
                f"but got {list(representations)}."
            )
        self.representations: tuple[str, ...] = tuple(dict.fromkeys(representations))
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.heads = nn.ModuleDict()
        self._accuracies: dict[str, Accuracies] = {}
        self._optimizer: torch.optim.Optimizer | None = None
        self._restored: dict[str, Any] | None = None
        self._steps = 0
        self._total_steps = math.inf
        self._probe_batches = 0
        self._means = EpochMeans()

    def state_dict(self) -> dict[str, Any]:
        """Heads with their statistics, optimiser, steps taken, and the epoch's means so far."""
        if self._optimizer is None:
            return self._restored or {}
        return {
            "heads": self.heads.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "steps": self._steps,
            "means": self._means.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the heads are built, on the module's device."""
        self._restored = state_dict
        if "means" in state_dict:
            self._means.load_state_dict(state_dict["means"])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start without heads, which the first features build; keep those of a fit gone on."""
        if trainer.global_step == 0 or self._restored is not None:
            self.heads, self._optimizer, self._steps = nn.ModuleDict(), None, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the length of the run for the learning rate's cosine."""
        # estimated_stepping_batches counts optimiser steps; a probe takes one every batch
        batches = trainer.estimated_stepping_batches * trainer.accumulate_grad_batches
        self._total_steps = batches if batches > 0 else math.inf
        self._means.to(pl_module.device)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the epoch's means."""
        self._means.reset()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the epoch's means."""
        self._means.log(pl_module)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Take one step on the features of all views, where the batch has the labels."""
        if self.num_classes is None or self.learns_in_validation(trainer):
            return
        features, labels = self._labelled(outputs, "training_step")
        optimizer = self._optimizer_for(features)
        progress = self._steps / self._total_steps
        metrics = self._step(optimizer, features, labels, progress, seen=self._steps)
        self._means.add(metrics, len(labels))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Agree on the batches of the labelled set; take the checkpoint's heads if not done yet."""
        if trainer.sanity_checking or self.num_classes is None:
            return
        if self._restored is not None:
            self._start(_widths(self._restored["heads"], self.representations), pl_module.device)
        self._accuracies = {
            name: Accuracies(self.num_classes, pl_module.device) for name in self.representations
        }
        if self.learns_in_validation(trainer):
            # a step is taken by all processes or by none, and shards may differ by a batch
            batches = torch.tensor([trainer.num_val_batches[0]], device=pl_module.device)
            self._probe_batches = int(all_gather_rows(batches).min())

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the validation set; learn from an earlier, labelled loader."""
        if self.num_classes is None or trainer.sanity_checking:
            return
        if is_validation_set(trainer, dataloader_idx):
            if not self.heads:
                return
            features, labels = self._labelled(outputs, "validation_step")
            for name, h in features.items():
                self._accuracies[name].update(self.heads[name](h), labels)
        elif (
            trainer.state.fn == TrainerFn.FITTING
            and dataloader_idx == 0
            and batch_idx < self._probe_batches
            and self.learns_in_validation(trainer)
        ):
            features, labels = self._labelled(outputs, "validation_step")
            optimizer = self._optimizer_for(features)
            progress = batch_idx / self._probe_batches
            # the last validation's statistics are those of another network
            metrics = self._step(optimizer, features, labels, progress, seen=batch_idx)
            _log(pl_module, metrics, len(labels))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the accuracies over all processes."""
        if not self.heads or self.num_classes is None or trainer.sanity_checking:
            return
        for name in self.representations:
            self._accuracies[name].log(pl_module, f"val/{_NAMES[name]}")

    def _labelled(self, outputs: Any, step: str) -> tuple[dict[str, Tensor], Tensor]:
        """Features of each representation, and their labels."""
        rows = self.labelled(outputs, [_OUTPUTS[name] for name in self.representations], step)
        return {name: rows[_OUTPUTS[name]] for name in self.representations}, rows["labels"]

    def _optimizer_for(self, features: Mapping[str, Tensor]) -> torch.optim.Optimizer:
        """The optimiser of heads for these features; new heads where they do not fit."""
        widths = {name: h.shape[1] for name, h in features.items()}
        there = {name: tuple(head.linear.weight.shape) for name, head in self._named_heads()}
        fit = there == {name: (self.num_classes, width) for name, width in widths.items()}
        if self._optimizer is None or not fit:
            return self._start(widths, next(iter(features.values())).device)
        return self._optimizer

    def _named_heads(self) -> Iterable[tuple[str, StandardizedLinear]]:
        return cast(Iterable[tuple[str, StandardizedLinear]], self.heads.items())

    # a validation may be the first to need heads, which later training steps change
    @torch.inference_mode(False)
    def _start(self, widths: Mapping[str, int], device: torch.device) -> torch.optim.Optimizer:
        """Build heads for features of these widths, as the checkpoint has them if there is one."""
        classes = cast(int, self.num_classes)
        heads = {name: StandardizedLinear(width, classes) for name, width in widths.items()}
        self.heads, self._steps = nn.ModuleDict(heads).to(device), 0
        optimizer = torch.optim.AdamW(
            self.heads.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay
        )
        if self._restored:
            self._restore_heads(self._restored["heads"])
            optimizer.load_state_dict(self._restored["optimizer"])
            self._steps = self._restored["steps"]
            self._restored = None
        self._optimizer = optimizer
        return optimizer

    def _restore_heads(self, state: dict[str, Tensor]) -> None:
        try:
            self.heads.load_state_dict(state)
        except RuntimeError as error:
            shapes = {name: tuple(value.shape) for name, value in state.items()}
            raise ValueError(
                f"Expected the checkpoint to have probes of {list(self.representations)} with "
                f"{self.num_classes} classes, but it has {shapes}. Probe the same representations "
                "and classes as the interrupted run."
            ) from error

    # validation runs in inference mode, and so do the features it makes
    @torch.inference_mode(False)
    @torch.enable_grad()
    def _step(
        self,
        optimizer: torch.optim.Optimizer,
        features: Mapping[str, Tensor],
        labels: Tensor,
        progress: float,
        seen: int,
    ) -> dict[str, Tensor]:
        """Take one step of all heads towards the labels; return their losses and accuracies.

        Args:
            optimizer: The optimiser of the heads.
            features: Features by representation.
            labels: Their classes; -1 is unlabelled.
            progress: Where on the learning rate's cosine the step is, from 0 to 1.
            seen: Batches that this network's statistics have seen.
        """
        labels = _plain(labels)
        known = labels >= 0
        mask = known.float().unsqueeze(1)
        own = known.sum().clamp(min=1)
        count = all_reduce_sum(known.sum().float())
        losses, metrics = [], {}
        with torch.autocast(labels.device.type, enabled=False):
            for name, head in self.heads.items():
                h = _plain(features[name]).float()
                head.observe(h, mask, count, seen)  # type: ignore[operator]
                logits = head(h)
                total = cross_entropy(logits, labels, ignore_index=-1, reduction="sum")
                # averaged over processes, this is the mean over the labelled global batch
                losses.append(total * world_size() / count.clamp(min=1))
                hits = ((logits.argmax(1) == labels) & known).sum()
                metrics[f"train/{_NAMES[name]}_loss"] = total.detach() / own
                metrics[f"train/{_NAMES[name]}_top1"] = hits / own
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()
        average_gradients(self.heads.parameters())
        _set_lr(optimizer, self.learning_rate * (1 + math.cos(math.pi * min(progress, 1))) / 2)
        optimizer.step()
        self._steps += 1
        return metrics


def _plain(tensor: Tensor) -> Tensor:
    """A tensor that autograd may keep: a copy of one made in inference mode, else itself."""
    return tensor.clone() if tensor.is_inference() else tensor.detach()


def _widths(heads: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, int]:
    """Width of the features of each head in a state; 1 for one that is not there."""
    weights = {name: heads.get(f"{name}.linear.weight") for name in names}
    return {name: 1 if weight is None else weight.shape[1] for name, weight in weights.items()}


def _log(pl_module: LightningModule, metrics: Mapping[str, Tensor], batch_size: int) -> None:
    """Log means over the epoch, under one name whichever loader the samples came from."""
    pl_module.log_dict(
        metrics,
        on_step=False,
        on_epoch=True,
        sync_dist=True,
        batch_size=batch_size,
        add_dataloader_idx=False,
    )


def _set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    groups: Iterable[dict[str, Any]] = optimizer.param_groups
    for group in groups:
        group["lr"] = lr
