"""LARS, and fused steps of torch's optimizers."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.optimizer import ParamsT

from duality_ssl._internals.torch import foreach_add_, foreach_addcmul_, foreach_mul_, foreach_norm

# Bytes of weights stepped at a time on a CPU: they, gradients and momentum stay in its cache.
_CACHED_BYTES = 2**21


class LARS(Optimizer):
    r"""SGD with momentum, each tensor's step scaled to its norm (You et al., 2017, eq. 6).

    For a weight :math:`w` with gradient :math:`g`, weight decay :math:`\beta` and trust
    coefficient :math:`\eta`:

    .. math::
        u = \frac{\eta \|w\|}{\|g\| + \beta \|w\| + \epsilon} (g + \beta w), \quad
        v \leftarrow m v + u, \quad
        w \leftarrow w - \mathrm{lr} \cdot v

    Under Nesterov momentum :math:`u + m v` replaces :math:`v` in the last step. The steps are
    those of ``pl_bolts.optimizers.LARS``: the trust ratio scales the update *before* the momentum,
    and a tensor whose weight or gradient is all zero takes a step of SGD, without decay. So does
    every tensor of a group with ``"adapt": False``; without this key a group is adapted if and only
    if its weight decay is not zero, as in bolts.

    With ``clip`` the rate of a tensor is not the product of :math:`\mathrm{lr}` and trust ratio but
    the smaller of the two, as in LARC and in the settings of solo-learn.

    The trust ratios stay on the parameters' device: a step does not synchronize with it.

    Args:
        params: Parameters, or groups of them, such as those of `parameter_groups`.
        lr: Learning rate.
        momentum: Momentum :math:`m`.
        weight_decay: L2 penalty :math:`\beta`, a part of what the trust ratio scales.
        trust_coefficient: Norm :math:`\eta` of an update, as a fraction of the weight's.
        eps: Added to the denominator of the trust ratio, :math:`\epsilon`.
        nesterov: Use Nesterov momentum.
        clip: Take the smaller of learning rate and trust ratio in place of their product.

    Raises:
        ValueError: If a number is negative, or ``nesterov`` is asked for without momentum.

    Reference: https://arxiv.org/abs/1708.03888
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        eps: float = 1e-8,
        nesterov: bool = False,
        clip: bool = False,
    ) -> None:
        defaults: dict[str, Any] = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "eps": eps,
        }
        for name, value in defaults.items():
            if not value >= 0:  # this way round a NaN is caught too
                raise ValueError(f"Expected `{name}` of LARS to be at least 0, but got {value}.")
        if nesterov and momentum == 0:
            raise ValueError("Expected a positive `momentum` for Nesterov's LARS, but got 0.")
        super().__init__(params, {**defaults, "nesterov": nesterov, "clip": clip, "adapt": None})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient; return the loss of ``closure``, if given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            grads = [p.grad for p in params if p.grad is not None]
            buffers = [self._momentum_buffer(p) for p in params] if group["momentum"] != 0 else []
            for part in _parts(params):
                _step(group, params[part], grads[part], buffers[part])
        return loss

    def _momentum_buffer(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"]
        return buffer


def _parts(params: list[Tensor]) -> Iterator[slice]:
    """Slices to step one after the other: of a size for the cache on a CPU, else the whole."""
    start, held = 0, 0
    for stop, parameter in enumerate(params, 1):
        held += parameter.nbytes
        if stop == len(params) or (held >= _CACHED_BYTES and parameter.is_cpu):
            yield slice(start, stop)
            start, held = stop, 0


def _step(
    group: dict[str, Any], params: list[Tensor], grads: list[Tensor], buffers: list[Tensor]
) -> None:
    """Update weights and momentum in place, without memory for the update."""
    lr, momentum, nesterov = group["lr"], group["momentum"], group["nesterov"]
    adapt = group["weight_decay"] != 0 if group["adapt"] is None else group["adapt"]
    factors = _factors(group, params, grads) if adapt else None

    def add_update(tensors: list[Tensor], scale: float) -> None:
        if factors is None:
            foreach_add_(tensors, grads, alpha=scale)
        else:
            # the decay comes first: the tensors may be the weights
            decay = scale * group["weight_decay"]
            foreach_addcmul_(tensors, params, factors[0], value=decay)
            foreach_addcmul_(tensors, grads, factors[1], value=scale)

    if momentum != 0:
        foreach_mul_(buffers, momentum)
        add_update(buffers, 1.0)
    if momentum == 0 or nesterov:
        add_update(params, -lr)
    if momentum != 0:
        foreach_add_(params, buffers, alpha=-lr * (momentum if nesterov else 1))


def _factors(
    group: dict[str, Any], params: list[Tensor], grads: list[Tensor]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Trust ratios of the decays and of the gradients: 0 and 1 where a norm is zero."""
    norms = torch.stack([*foreach_norm(params), *foreach_norm(grads)])
    of_params, of_grads = norms.chunk(2)  # one entry a tensor
    sums = torch.add(of_grads, of_params, alpha=group["weight_decay"]).add_(group["eps"])
    trust = of_params.mul(group["trust_coefficient"]).div_(sums)
    if group.get("clip"):  # not in the groups of older checkpoints
        trust = torch.where(trust < group["lr"], trust / group["lr"], 1.0)
    # unlike a branch on the norms, `where` does not make the host wait for the device
    adapt = torch.logical_and(of_params, of_grads)
    return torch.where(adapt, trust, 0.0).unbind(), torch.where(adapt, trust, 1.0).unbind()


def fuse(optimizer: Optimizer) -> None:
    """Let torch's SGD, Adam and AdamW step in one fused kernel, unless the user chose a kernel.

    A state that is loaded gets the memory layout of its weights: the fused kernels need it, and
    those for CPUs do not check it.
    """
    optimizer.register_load_state_dict_post_hook(_lay_out_state)
    chosen = any(optimizer.defaults.get(name) is not None for name in ("fused", "foreach"))
    if type(optimizer) in (SGD, Adam, AdamW) and not chosen:
        for group in optimizer.param_groups:
            group["fused"] = True


def _lay_out_state(optimizer: Optimizer) -> None:
    """Give loaded state the strides of its parameter; a checkpoint has those of its own run."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            same = isinstance(value, Tensor) and value.shape == parameter.shape
            if same and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
