"""The online linear probe: a linear classifier on detached features, trained alongside."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from duality_ssl.callbacks.labelled import LabelledCallback
from duality_ssl.callbacks.means import EpochMeans
from duality_ssl.callbacks.standardized import StandardizedLinear
from duality_ssl.distributed import all_gather_rows, all_reduce_sum, average_gradients, world_size

Representation = Literal["backbone", "projector"]
# the entry of a representation in a step's outputs, and its name in the logs
_OUTPUTS: dict[str, str] = {"backbone": "features", "projector": "embeddings"}
_NAMES: dict[str, str] = {"backbone": "probe", "projector": "probe_projector"}


class OnlineLinearProbe(LabelledCallback):
    r"""Linear probes on detached features of the training step, with their own optimizer.

    After every training batch each probe takes one AdamW step on the cross-entropy of the features
    that the step returned (all views count); the network gets no gradient and sees no image twice.
    Features are standardized (:class:`StandardizedLinear`), heads are float32 whatever the
    precision of the network, gradients are those of the global batch, and the learning rate falls
    to 0 along a cosine over the run.

    If the pretraining data has no labels and the data module has a labelled set for probing
    (``probe_is_pretrain`` False), the heads learn from that set's features at each validation, with
    one cosine a validation, and keep their weights for the next; mean and variance start anew.

    Logs ``train/probe_loss``, ``train/probe_top1`` (means over an epoch), ``val/probe_top1`` and
    ``val/probe_top5`` (more than 5 classes), each sample counted once; for the projector
    ``probe_projector`` in place of ``probe``. Accuracies are fractions.

    Args:
        representations: ``backbone`` (features), ``projector`` (embeddings), or both.
        learning_rate: Peak learning rate of AdamW; 0.1 to 1 suit 128 to 2048 features.
        weight_decay: Weight decay of AdamW.
        num_classes: Number of classes; by default that of the data module. With it, the probe works
            with any module whose steps return ``features`` (``embeddings`` for the projector) and
            ``labels``, see docs/monitoring.md.

    Raises:
        ValueError: If a representation, a checkpoint or the outputs of a step do not fit.

    Source: supplement C of Garrido et al., ICLR 2023: the online classifier tracks the offline one.
    """

    def __init__(
        self,
        representations: Sequence[Representation] = ("backbone",),
        learning_rate: float = 0.3,
        weight_decay: float = 1e-4,
        num_classes: int | None = None,
    ) -> None:
        super().__init__([_OUTPUTS.get(name, name) for name in representations], num_classes)
        if not representations or not {*representations} <= _OUTPUTS.keys():
            raise ValueError(
                f"Expected `representations` to be some of {sorted(_OUTPUTS)}, "
                f"but got {list(representations)}."
            )
        self.representations: tuple[str, ...] = tuple(dict.fromkeys(representations))
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.heads = nn.ModuleDict()
        self._optimizer: torch.optim.Optimizer | None = None
        self._restored: dict[str, Any] | None = None
        self._steps = 0
        self._total_steps = math.inf
        self._probe_batches = 0
        self._means = EpochMeans()

    def state_dict(self) -> dict[str, Any]:
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
        self._means.load_state_dict(state_dict.get("means", {}))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start without heads, which the first features build; keep those of an earlier fit."""
        if trainer.global_step == 0 or self._restored is not None:
            self.heads, self._optimizer, self._steps = nn.ModuleDict(), None, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the heads of a checkpoint; read the length of the learning rate's cosine."""
        self._restore(pl_module.device)
        # estimated_stepping_batches counts optimizer steps; a probe takes one every batch
        batches = trainer.estimated_stepping_batches * trainer.accumulate_grad_batches
        self._total_steps = batches if batches > 0 else math.inf
        self._means.to(pl_module.device)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._means.reset()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._means.log(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the heads of a checkpoint; agree on the batches of the labelled set."""
        if trainer.sanity_checking or self.num_classes is None:
            return
        self._restore(pl_module.device)
        if self.learns_in_validation(trainer):
            # a step needs all processes, and shards may differ by a batch
            batches = torch.tensor([trainer.num_val_batches[0]], device=pl_module.device)
            self._probe_batches = int(all_gather_rows(batches).min())

    def learn(
        self, trainer: Trainer, pl_module: LightningModule, rows: dict[str, Tensor], batch_idx: int
    ) -> None:
        """Take one step on the features of all views."""
        features = {name: rows[_OUTPUTS[name]] for name in self.representations}
        labels, size = rows["labels"], len(rows["labels"])
        in_validation = self.learns_in_validation(trainer)
        fitting = trainer.state.fn == TrainerFn.FITTING
        if in_validation and not (fitting and batch_idx < self._probe_batches):
            return
        if not self.heads:
            self._build({name: h.shape[1] for name, h in features.items()}, labels.device)
        if in_validation:
            # statistics start anew: those of the last validation are of another network
            metrics = self._step(features, labels, batch_idx / self._probe_batches, seen=batch_idx)
            # one name, whichever loader the samples come from
            pl_module.log_dict(metrics, sync_dist=True, batch_size=size, add_dataloader_idx=False)
        else:
            progress = self._steps / self._total_steps
            self._means.add(self._step(features, labels, progress, seen=self._steps), size)

    def scores(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        return {_NAMES[name]: head(rows[_OUTPUTS[name]]) for name, head in self.heads.items()}

    # validation may build the heads, and later training steps update them
    @torch.inference_mode(False)
    def _build(self, widths: Mapping[str, int], device: torch.device) -> None:
        classes = cast(int, self.num_classes)
        heads = {name: StandardizedLinear(width, classes) for name, width in widths.items()}
        self.heads, self._steps = nn.ModuleDict(heads).to(device), 0
        self._optimizer = torch.optim.AdamW(
            self.heads.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay
        )

    @torch.inference_mode(False)
    def _restore(self, device: torch.device) -> None:
        """Build the heads of the checkpoint, if there is one."""
        if self._restored is None or self.num_classes is None:
            return
        state, self._restored = self._restored, None
        ends = ".linear.weight"
        heads = {name.removesuffix(ends): w for name, w in state["heads"].items() if ends in name}
        classes = {name: len(weight) for name, weight in heads.items()}
        if classes != dict.fromkeys(self.representations, self.num_classes):
            raise ValueError(
                f"Expected the checkpoint to have probes of {list(self.representations)} with "
                f"{self.num_classes} classes, but it has {classes}. Probe the same as that run."
            )
        self._build({name: heads[name].shape[1] for name in self.representations}, device)
        self.heads.load_state_dict(state["heads"])
        cast(torch.optim.Optimizer, self._optimizer).load_state_dict(state["optimizer"])
        self._steps = state["steps"]

    # validation runs in inference mode
    @torch.inference_mode(False)
    @torch.enable_grad()
    def _step(
        self, features: Mapping[str, Tensor], labels: Tensor, progress: float, seen: int
    ) -> dict[str, Tensor]:
        """Take a step of all heads, at ``progress`` in 0 to 1; return losses and accuracies."""
        optimizer = cast(torch.optim.Optimizer, self._optimizer)
        labels = _outside_inference(labels)
        known = labels >= 0
        mask = known.float().unsqueeze(1)
        own = known.sum().clamp(min=1)
        count = all_reduce_sum(known.sum().float())
        losses, metrics = [], {}
        with torch.autocast(labels.device.type, enabled=False):
            for name, head in self.heads.items():
                h = _outside_inference(features[name]).float()
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
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate * (1 + math.cos(math.pi * min(progress, 1))) / 2
        optimizer.step()
        self._steps += 1
        return metrics


def _outside_inference(tensor: Tensor) -> Tensor:
    """The tensor without gradient; a copy of one made in inference mode, which autograd refuses."""
    return tensor.clone() if tensor.is_inference() else tensor.detach()
