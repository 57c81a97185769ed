"""Which parts of a training step are not finite: flagged on the device, read on demand."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from duality_ssl.callbacks.outputs import gather_strings
from duality_ssl.distributed import all_reduce_sum

_NAMED = 3  # images or weights that a message names
_IMAGES = "Repair or remove these images, or what makes them so, such as a `std` near 0."
_DIVERGED = (
    "Try a lower learning rate (--model.base_lr), a longer warm-up (--model.warmup_epochs), or "
    "precision 32-true or bf16-mixed in place of 16-mixed."
)
_WHERE = f"{_DIVERGED} --trainer.detect_anomaly true names the operation."


class StepFaults(NamedTuple):
    """Flags of what is NaN or infinite in one step, on its device, without waiting for it."""

    batch_idx: int
    images: Tensor  # shape (N,), for the pixels of all views of an image
    embeddings: Tensor  # shape (N,)
    loss: Tensor
    gradients: Tensor  # a flag for each of the weights; empty before the first step
    weights: Sequence[nn.Parameter]

    def any(self, gradients: bool = True) -> Tensor:
        """Whether any flag is set, shape ``()``; optionally without the gradients."""
        parts = [self.images, self.embeddings, self.loss[None], self.gradients]
        return torch.cat(parts if gradients else parts[:-1]).any()

    def culprit(self, images: Sequence[str], module: nn.Module) -> tuple[str, str]:
        """Return what failed first, from pixels to gradients, and a remedy; call it on all."""
        pixels, embedded = _who(self.images, images), _who(self.embeddings, images)
        if pixels:
            return f"pixels of {pixels} are NaN or infinite.", _IMAGES
        if embedded:
            what = f"the embeddings of {embedded} are NaN or infinite, and their pixels are finite."
            return what, _DIVERGED
        if self.loss.item():
            return "the loss is NaN or infinite, and the embeddings are finite.", _WHERE
        names = {weight: name for name, weight in module.named_parameters()}
        flags = zip(self.weights, self.gradients.tolist(), strict=True)
        bad = [names.get(weight, "?") for weight, is_bad in flags if is_bad]
        of = f"{len(bad)} of {len(self.weights)} weights are NaN or infinite ({_some(bad)})"
        return f"the gradients of {of}, and the loss is finite.", _WHERE


@torch.no_grad()
def step_faults(
    batch_idx: int,
    images: Sequence[Tensor],
    embeddings: Sequence[Tensor],
    loss: Tensor,
    weights: Sequence[nn.Parameter],
    norms: Tensor | None,
) -> StepFaults:
    """Flag what is not finite in views ``(N, ...)``, their embeddings ``(N, D)`` and gradients."""
    # the sum is not finite if a pixel is not, and takes one pass without temporaries
    sums = [view.sum(tuple(range(1, view.ndim)), dtype=torch.float32) for view in images]
    none = torch.zeros(len(embeddings[0]), device=loss.device)
    finite = [z.isfinite().all(dim=1) for z in embeddings]
    return StepFaults(
        batch_idx,
        images=~sum(sums, none).isfinite(),
        embeddings=~torch.stack(finite).all(dim=0),
        loss=~loss.isfinite(),
        gradients=loss.new_empty(0, dtype=torch.bool) if norms is None else ~norms.isfinite(),
        weights=weights,
    )


@torch.no_grad()
def _who(bad: Tensor, names: Sequence[str]) -> str:
    """Name the flagged images of all processes; empty if there are none."""
    chosen = [name for name, is_bad in zip(names, bad.tolist(), strict=True) if is_bad]
    gathered = gather_strings(chosen, bad.device)
    total = int(all_reduce_sum(torch.tensor(len(names), device=bad.device)))
    if len(gathered) == total:
        return f"all {total} images of the batch"
    return f"{len(gathered)} of {total} images ({_some(gathered)})" if gathered else ""


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
