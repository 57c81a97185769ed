"""What of a training step is not finite: noted on the device, and read when somebody asks."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from duality_ssl.callbacks.outputs import gather_strings
from duality_ssl.distributed import all_reduce_sum

_NAMED = 3  # culprits that a message names, of those it counts
_IMAGES = (
    "Repair or remove these images, or what makes them so: a `std` near 0 of their source would be "
    "enough."
)
DIVERGED = (
    "Try a lower learning rate (--model.base_lr), a longer warm-up (--model.warmup_epochs), or "
    "precision 32-true or bf16-mixed in place of 16-mixed."
)
_WHERE = f"{DIVERGED} --trainer.detect_anomaly true names the operation."


class StepFaults(NamedTuple):
    """Which parts of one step are NaN or infinite, on their device: nothing waits for it."""

    batch_idx: int
    images: Tensor
    """For each image whether a pixel of a view is, shape ``(N,)``."""
    embeddings: Tensor
    """For each image whether an embedding is, shape ``(N,)``."""
    loss: Tensor
    """Whether the loss is, shape ``()``."""
    gradients: Tensor
    """For each of the weights whether its gradient is; empty before the first step."""
    weights: Sequence[nn.Parameter]
    """Those that have a gradient."""

    def any(self, gradients: bool = True) -> Tensor:
        """Whether anything is, shape ``()``; perhaps without the gradients."""
        parts = [self.images, self.embeddings, self.loss[None]]
        return torch.cat([*parts, self.gradients] if gradients else parts).any()

    def culprit(self, images: Sequence[str], module: nn.Module) -> tuple[str, str]:
        """Say what came first on the way from pixels to gradients, and what to do about it.

        To be called by every process; it waits for the device.

        Args:
            images: Names of this process's N images.
            module: Whose weights were trained.
        """
        pixels, embedded = _who(self.images, images), _who(self.embeddings, images)
        if pixels:
            return f"pixels of {pixels} are NaN or infinite.", _IMAGES
        if embedded:
            return (
                f"the embeddings of {embedded} are NaN or infinite, and their pixels are finite.",
                DIVERGED,
            )
        if self.loss.item():
            return "the loss is NaN or infinite, and the embeddings are finite.", _WHERE
        names = {weight: name for name, weight in module.named_parameters()}
        flags = zip(self.weights, self.gradients.tolist(), strict=True)
        bad = [names.get(weight, "?") for weight, is_bad in flags if is_bad]
        return (
            f"the gradients of {len(bad)} of {len(self.weights)} weights are NaN or infinite "
            f"({_some(bad)}), and the loss is finite.",
            _WHERE,
        )


@torch.no_grad()
def step_faults(
    batch_idx: int,
    images: Sequence[Tensor],
    embeddings: Sequence[Tensor],
    loss: Tensor,
    weights: Sequence[nn.Parameter],
    norms: Tensor | None,
) -> StepFaults:
    """Note which parts of a step are not finite.

    Args:
        batch_idx: Which batch of the epoch it was.
        images: Views of the images, shape ``(N, ...)`` each; none where they are not known.
        embeddings: Embeddings of the views, shape ``(N, D)`` each.
        loss: The loss.
        weights: Those that have a gradient.
        norms: Norms of their gradients; None for no weights.
    """
    # a sum is not finite if a pixel is not, and one pass over them, with nothing in between
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
    """Which images of all processes are meant, in words; none gives an empty string."""
    chosen = [name for name, is_bad in zip(names, bad.tolist(), strict=True) if is_bad]
    everybodys = gather_strings(chosen, bad.device)
    total = int(all_reduce_sum(torch.tensor(len(names), device=bad.device)))
    if not everybodys:
        return ""
    if len(everybodys) == total:
        return f"all {total} images of the batch"
    return f"{len(everybodys)} of {total} images ({_some(everybodys)})"


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
