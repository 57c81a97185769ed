"""Criteria that predict another view's assignment to prototypes: SwAV and DINO."""

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from duality_ssl.criteria.base import Criterion, check_positive
from duality_ssl.distributed import SINGLE, Group
from duality_ssl.functional import normalize_rows, sinkhorn


class SwAV(Criterion):
    r"""Each view predicts the other's balanced assignment to trained prototypes.

    .. math:: L = \frac1{|\mathrm{pairs}|} \sum_{v \ne w} \mathrm{CE}(q_w, p_v), \qquad
        q = \mathrm{Sinkhorn}(u C^\top / \epsilon), \quad p = \mathrm{softmax}(u C^\top / \tau)

    of unit rows u and unit prototypes C, a mean over samples and over pairs of views. The first two
    views are the large ones: w is one of them, v any of all views. Assignments have no gradient;
    they are balanced over the samples of all processes and those of the queue.

    Terms: ``entropy``, the mean entropy of the assignments, and ``divergence``, the mean divergence
    of the predictions from them; the loss is their sum.

    Args:
        dimensions: Dimensions D of the embeddings.
        num_prototypes: Prototypes K.
        temperature: :math:`\tau`, positive.
        epsilon: :math:`\epsilon`, positive; the smaller, the closer to one prototype a sample.
        iterations: Iterations of Sinkhorn-Knopp.
        queue: Embeddings of the batches before, of each large view, that assignments are balanced
            over as well: useful where a batch has few samples for each prototype.
        queue_start: Optimizer steps before the queue is filled; it is used once it is full.
        frozen_steps: Optimizer steps in which the prototypes have a gradient of zero. Only their
            directions matter, so weight decay does not move them either.

    Reference: Caron et al., NeurIPS 2020, eq. 1-5, https://arxiv.org/abs/2006.09882

    Example:
        >>> z1, z2 = torch.eye(4), torch.eye(4)
        >>> terms = SwAV(dimensions=4, num_prototypes=6)(z1, z2, step=0)
        >>> torch.allclose(terms["loss"], terms["entropy"] + terms["divergence"])
        True
    """

    family = "codes"
    queued: Tensor

    def __init__(
        self,
        dimensions: int,
        num_prototypes: int = 3000,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        iterations: int = 3,
        queue: int = 0,
        queue_start: int = 0,
        frozen_steps: int = 313,
    ) -> None:
        super().__init__()
        check_positive(dimensions=dimensions, num_prototypes=num_prototypes, iterations=iterations)
        check_positive(temperature=temperature, epsilon=epsilon)
        check_positive(or_zero=True, queue=queue, queue_start=queue_start)
        check_positive(or_zero=True, frozen_steps=frozen_steps)
        self.dimensions, self.num_prototypes = dimensions, num_prototypes
        self.temperature, self.epsilon, self.iterations = temperature, epsilon, iterations
        self.queue, self.queue_start, self.frozen_steps = queue, queue_start, frozen_steps
        directions = normalize_rows(torch.randn(num_prototypes, dimensions))
        self.prototypes = nn.Parameter(directions)
        self.register_buffer("queued", torch.zeros(2, queue, dimensions))

    def terms(self, *views: Tensor, step: int, group: Group = SINGLE) -> dict[str, Tensor]:
        prototypes = normalize_rows(self.prototypes).to(views[0].dtype)
        if step < self.frozen_steps:  # in the graph, or distributed data parallel misses them
            prototypes = prototypes.detach() + 0 * prototypes
        rows = [normalize_rows(z) for z in views]
        logits = [u @ prototypes.T / self.temperature for u in rows]
        n = len(rows[0])
        with torch.no_grad():
            scores = logits[:2]
            if self._queue_is_full(step, group.world_size * n):
                earlier = self.queued[:, group.rank :: group.world_size].to(prototypes)
                more = earlier @ prototypes.T / self.temperature
                scores = [torch.cat(each) for each in zip(scores, more, strict=True)]
            sharpness = self.temperature / self.epsilon
            codes = [sinkhorn(s * sharpness, self.iterations, group)[:n] for s in scores]
            if self.training and self.queue and step >= self.queue_start:
                new = torch.stack([group.all_gather(u) for u in rows[:2]])
                self.queued.copy_(torch.cat([new, self.queued], dim=1)[:, : self.queue])
        return _swapped_prediction(codes, logits, group)

    def _queue_is_full(self, step: int, n: int) -> bool:
        return self.queue > 0 and (step - self.queue_start) * n >= self.queue

    def memory(self, n: int, d: int) -> int:
        return 2 * 3 * n * d + 6 * n * self.num_prototypes + 2 * self.num_prototypes * d


class DINO(Criterion):
    r"""Each view predicts the teacher's sharpened and centred output for the other views.

    .. math:: L = \frac1{|\mathrm{pairs}|} \sum_{v \ne w}
        \mathrm{CE}\bigl(\mathrm{softmax}((t_w - c)/\tau_t), \mathrm{softmax}(z_v/\tau_s)\bigr)

    a mean over samples and over pairs of views: w is a large view, one for which there is a target,
    and they come first; v is any view. Then the centre moves,
    :math:`c \leftarrow \lambda c + (1 - \lambda)\,\mathrm{mean}(t)`, with the mean over views and
    processes. It moves once an optimizer step: batches with the same ``step`` use the same centre,
    and move it by their mean.

    Terms: ``entropy``, the mean entropy of the targets' softmax, and ``divergence``, the mean
    divergence of the predictions from it; the loss is their sum. An entropy near 0, or near
    :math:`\log D` with a divergence near 0, is collapse.

    Args:
        dimensions: Dimensions D of the embeddings: prototypes of the head.
        temperature: :math:`\tau_s` of the student, positive.
        teacher_temperature: :math:`\tau_t` of the teacher, positive.
        initial_teacher_temperature: Where :math:`\tau_t` starts; the way from there is linear.
        teacher_warmup_steps: Optimizer steps of this way.
        center_momentum: :math:`\lambda`, below 1.
        frozen_epochs: Epochs in which the method drops the gradient of the head's prototypes.

    Reference: Caron et al., ICCV 2021, eq. 1-4, https://arxiv.org/abs/2104.14294

    Example:
        >>> criterion, z = DINO(dimensions=4), torch.eye(4)
        >>> criterion(z, z, targets=(z, z), step=0)["entropy"].round(decimals=3)  # sharp targets
        tensor(0.)
        >>> criterion.center
        tensor([0.0250, 0.0250, 0.0250, 0.0250])
    """

    family = "distillation"
    center: Tensor
    _center: Tensor
    _step: Tensor
    _calls: Tensor

    def __init__(
        self,
        dimensions: int,
        temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        initial_teacher_temperature: float = 0.04,
        teacher_warmup_steps: int = 0,
        center_momentum: float = 0.9,
        frozen_epochs: int = 1,
    ) -> None:
        super().__init__()
        check_positive(dimensions=dimensions, temperature=temperature)
        check_positive(teacher_temperature=teacher_temperature)
        check_positive(initial_teacher_temperature=initial_teacher_temperature)
        check_positive(center_momentum=center_momentum)
        check_positive(or_zero=True, teacher_warmup_steps=teacher_warmup_steps)
        check_positive(or_zero=True, frozen_epochs=frozen_epochs)
        if center_momentum >= 1:
            raise ValueError(f"Expected `center_momentum` below 1, but got {center_momentum}.")
        self.dimensions, self.temperature = dimensions, temperature
        self.teacher_temperature = teacher_temperature
        self.initial_teacher_temperature = initial_teacher_temperature
        self.teacher_warmup_steps = teacher_warmup_steps
        self.center_momentum, self.frozen_epochs = center_momentum, frozen_epochs
        self.register_buffer("center", torch.zeros(dimensions))
        # the centre of the current step, which step that is, and how many batches it has had
        self.register_buffer("_center", torch.zeros(dimensions), persistent=False)
        self.register_buffer("_step", torch.tensor(-1), persistent=False)
        self.register_buffer("_calls", torch.tensor(0), persistent=False)

    def terms(
        self, *views: Tensor, targets: tuple[Tensor, ...], step: int, group: Group = SINGLE
    ) -> dict[str, Tensor]:
        if self.training:
            self._start(step)
        center = self._center if self.training else self.center
        temperature = self.teacher_temperature_at(step)
        with torch.no_grad():
            codes = [((t - center) / temperature).softmax(dim=1) for t in targets]
            if self.training:
                self._move(group.sum(torch.stack(targets).mean(dim=(0, 1))) / group.world_size)
        return _swapped_prediction(codes, [z / self.temperature for z in views], group)

    def teacher_temperature_at(self, step: int) -> float:
        """Return the teacher's temperature after so many optimizer steps."""
        if step >= self.teacher_warmup_steps:
            return self.teacher_temperature
        way = self.teacher_temperature - self.initial_teacher_temperature
        return self.initial_teacher_temperature + way * step / self.teacher_warmup_steps

    def _start(self, step: int) -> None:
        """Take the centre for an optimizer step; without a branch, which would wait for a GPU."""
        new = self._step != step
        self._step.fill_(step)
        self._calls.copy_(torch.where(new, 1, self._calls + 1))
        self._center.copy_(torch.where(new, self.center, self._center))

    def _move(self, mean: Tensor) -> None:
        """Move the centre by the running mean of the batches of this optimizer step."""
        moved = self._center.lerp(mean.to(self._center.dtype), 1 - self.center_momentum)
        self.center.copy_(self.center + (moved - self.center) / self._calls)


def _swapped_prediction(
    codes: Sequence[Tensor], logits: Sequence[Tensor], group: Group
) -> dict[str, Tensor]:
    """Cross-entropy of codes w and logits v, a mean over all pairs ``v != w`` and all samples."""
    losses = [
        F.cross_entropy(logit, functools.reduce(torch.add, others))
        for v, logit in enumerate(logits)
        if (others := [q for w, q in enumerate(codes) if w != v])
    ]
    loss = group.mean(torch.stack(losses).sum() / (len(codes) * (len(logits) - 1)))
    entropies = torch.stack([torch.special.entr(q).sum(dim=1).mean() for q in codes])
    entropy = group.mean(entropies)
    return {"loss": loss, "entropy": entropy, "divergence": loss - entropy}
