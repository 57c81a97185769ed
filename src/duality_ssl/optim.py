"""LARS, fused steps, warm-up with cosine decay, parameter groups, the linear scaling rule."""

import math
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.optimizer import ParamsT

# Weights of a part of a step: its weights, gradients and momentum stay in a CPU's cache meanwhile.
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
    every tensor of a group that is not adapted, which its key ``"adapt"`` says; without the key a
    group is adapted if and only if its weight decay is not zero, as in bolts.

    The trust ratios stay on the parameters' device: a step waits for nothing.

    Args:
        params: Parameters, or groups of them as from `parameter_groups`.
        lr: Learning rate.
        momentum: Momentum :math:`m`.
        weight_decay: L2 penalty :math:`\beta`, a part of what the trust ratio scales.
        trust_coefficient: Norm :math:`\eta` of an update, as a fraction of the weight's.
        eps: Added to the denominator of the trust ratio.
        nesterov: Use Nesterov momentum.

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
        super().__init__(params, {**defaults, "nesterov": nesterov, "adapt": None})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient.

        Args:
            closure: Computes the loss anew, with gradients.

        Returns:
            What ``closure`` returned, if there is one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._step_group(group, params)
        return loss

    def _step_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        grads = [p.grad for p in params if p.grad is not None]
        buffers = [self._momentum_buffer(p) for p in params] if group["momentum"] != 0 else []
        for part in _parts(params):
            _step(group, params[part], grads[part], buffers[part])

    def _momentum_buffer(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"]
        return buffer


def _parts(params: list[Tensor]) -> Iterator[slice]:
    """Slices to step one after the other: on a CPU what its cache holds, elsewhere the whole."""
    start, held = 0, 0
    for stop, parameter in enumerate(params, 1):
        held += parameter.nbytes
        if stop == len(params) or (held >= _CACHED_BYTES and parameter.is_cpu):
            yield slice(start, stop)
            start, held = stop, 0


def _step(
    group: dict[str, Any], params: list[Tensor], grads: list[Tensor], buffers: list[Tensor]
) -> None:
    """Update weights and momentum in place; memory for an update would cost more than the sums."""
    lr, momentum, nesterov = group["lr"], group["momentum"], group["nesterov"]
    adapt = group["weight_decay"] != 0 if group["adapt"] is None else group["adapt"]
    factors = _factors(group, params, grads) if adapt else None

    def add_update(tensors: list[Tensor], scale: float) -> None:
        if factors is None:
            torch._foreach_add_(tensors, grads, alpha=scale)
        else:
            # the decay first, for the tensors may be the weights
            decay = scale * group["weight_decay"]
            torch._foreach_addcmul_(tensors, params, factors[0], value=decay)
            torch._foreach_addcmul_(tensors, grads, factors[1], value=scale)

    if momentum != 0:
        torch._foreach_mul_(buffers, momentum)
        add_update(buffers, 1.0)
    if momentum == 0 or nesterov:
        add_update(params, -lr)
    if momentum != 0:
        torch._foreach_add_(params, buffers, alpha=-lr * (momentum if nesterov else 1))


def _factors(
    group: dict[str, Any], params: list[Tensor], grads: list[Tensor]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Trust ratios for the decays and for the gradients: 0 and 1 where a norm is zero."""
    norms = torch.stack([*torch._foreach_norm(params), *torch._foreach_norm(grads)])
    of_params, of_grads = norms.chunk(2)  # one entry a tensor
    sums = torch.add(of_grads, of_params, alpha=group["weight_decay"]).add_(group["eps"])
    trust = of_params.mul(group["trust_coefficient"]).div_(sums)
    # A branch on the norms would make the host wait for the device; `where` does not.
    adapt = torch.logical_and(of_params, of_grads)
    return torch.where(adapt, trust, 0.0).unbind(), torch.where(adapt, trust, 1.0).unbind()


def fuse(optimizer: Optimizer) -> None:
    """Have torch's SGD, Adam and AdamW take their steps in one fused kernel: the same, but faster.

    Nothing changes for other optimisers, for other devices than CPU and CUDA, and where ``fused``,
    ``foreach`` or what excludes them was asked for.

    Args:
        optimizer: An optimiser before its first step. The state it may load is laid out in memory
            as its weights are: the fused kernels need that, and on a CPU they do not check it.
    """
    optimizer.register_load_state_dict_post_hook(_lay_out_state)
    undecided = all(optimizer.defaults.get(name) is None for name in ("fused", "foreach"))
    excluded = any(optimizer.defaults.get(name) for name in ("capturable", "differentiable"))
    params = (parameter for group in optimizer.param_groups for parameter in group["params"])
    if (
        type(optimizer) in (SGD, Adam, AdamW)
        and undecided
        and not excluded
        and all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in params)
    ):
        for group in optimizer.param_groups:
            group["fused"] = True


def _lay_out_state(optimizer: Optimizer) -> None:
    """Give loaded state the strides of its parameter: a checkpoint keeps those of its own run."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            same = isinstance(value, Tensor) and value.shape == parameter.shape
            if same and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split the trainable parameters of ``module`` into two groups for an optimiser.

    The second group, neither decayed nor adapted by `LARS`, holds the biases, the parameters of
    normalisation layers and all other vectors, with or without further dimensions of size one
    (the layer scale of a ConvNeXt has shape ``(C, 1, 1)``; a weight of one output counts too).

    It also holds what a module at any depth exempts by a method ``no_weight_decay()``, as timm's
    transformers exempt position embeddings, relative position tables and register tokens. The
    method returns names as in the module's own ``named_parameters()``; ``*`` stands for any part.

    The first group holds the rest, and `LARS` adapts it even if ``weight_decay`` is zero; other
    optimisers pass over ``"adapt"``.

    Args:
        module: Module whose parameters are to be trained.
        weight_decay: Weight decay of the first group.

    Returns:
        Two groups, always in this order; either may be empty.

    Raises:
        ValueError: If ``weight_decay`` is negative or the module has nothing to train.
    """
    if not weight_decay >= 0:
        raise ValueError(f"Expected `weight_decay` to be at least 0, but got {weight_decay}.")
    norms = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    weights: dict[nn.Parameter, None] = {}  # ordered sets: a parameter may be shared by layers
    plain: dict[nn.Parameter, None] = {}
    exempt = _exempt(module)
    for layer in module.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            vector = parameter.numel() == max(parameter.shape, default=1)
            excluded = vector or name.endswith("bias") or isinstance(layer, norms)
            excluded = excluded or parameter in exempt
            if parameter.requires_grad:
                (plain if excluded else weights)[parameter] = None
    if not weights and not plain:
        raise ValueError(
            f"Expected {type(module).__name__} to have parameters to train, but none requires a "
            f"gradient."
        )
    return [
        {"params": list(weights), "weight_decay": weight_decay, "adapt": True},
        {"params": list(plain), "weight_decay": 0.0, "adapt": False},
    ]


def _exempt(module: nn.Module) -> set[nn.Parameter]:
    """Parameters that the module, or one within it, names in its ``no_weight_decay()``."""
    exempt: set[nn.Parameter] = set()
    for layer in module.modules():
        patterns: Iterable[str] = getattr(layer, "no_weight_decay", tuple)()
        exempt.update(
            parameter
            for name, parameter in layer.named_parameters(remove_duplicate=False)
            if any(fnmatchcase(name, pattern) for pattern in patterns)
        )
    return exempt


def scaled_lr(base_lr: float, global_batch: int) -> float:
    """Scale a learning rate linearly with the batch: ``base_lr * global_batch / 256``.

    Args:
        base_lr: Learning rate at a batch of 256.
        global_batch: Images that one optimiser step sees, over all processes and accumulated
            batches; the two views of an image count once.

    Raises:
        ValueError: If ``global_batch`` is not positive.

    Reference: Goyal et al., 2017, section 2.1, https://arxiv.org/abs/1706.02677
    """
    if global_batch < 1:
        raise ValueError(f"Expected `global_batch` to be at least 1, but got {global_batch}.")
    return base_lr * global_batch / 256


def warmup_cosine(
    optimizer: Optimizer, warmup_steps: float, total_steps: float, floor: float
) -> LambdaLR:
    r"""Schedule every group's learning rate: linear warm-up from zero, then cosine to a floor.

    With :math:`W` warm-up steps of :math:`T` in all, step :math:`k = 0, 1, \dots` has the rate
    :math:`\mathrm{lr} \cdot k / (W - 1)` while :math:`k < W`, and from then on

    .. math::
        \mathrm{lr} \left(f + (1 - f) \frac{1 + \cos(\pi (k - W) / (T - W))}{2} \right)

    and :math:`f \cdot \mathrm{lr}` after step :math:`T`. For :math:`W \ge 1` and :math:`k \le T`
    this is bolts' ``LinearWarmupCosineAnnealingLR(optimizer, W, T, eta_min=f * lr)``; without
    warm-up it starts at ``lr``, where that one stays at ``eta_min`` or below.

    Args:
        optimizer: Optimiser whose groups hold the learning rates at the end of the warm-up.
        warmup_steps: Optimiser steps of warm-up; from ``total_steps`` on there is no cosine.
        total_steps: Optimiser steps of the whole training; ``math.inf`` for one without an end,
            whose rate stays at its highest after the warm-up.
        floor: Last learning rate as a fraction of the highest; the default is VICReg's.

    Returns:
        A scheduler to be stepped after each optimiser step.

    Raises:
        ValueError: If ``warmup_steps`` is negative, ``total_steps`` not positive, or ``floor``
            outside [0, 1].
    """
    if warmup_steps < 0:
        raise ValueError(f"Expected `warmup_steps` to be at least 0, but got {warmup_steps}.")
    if total_steps < 1:
        raise ValueError(f"Expected `total_steps` to be at least 1, but got {total_steps}.")
    if not 0 <= floor <= 1:
        raise ValueError(
            f"Expected `floor` to be a fraction of the learning rate in [0, 1], but got {floor}."
        )

    def factor(step: int) -> float:
        if step < warmup_steps:
            return step / max(1, warmup_steps - 1)
        progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2

    return LambdaLR(optimizer, factor)
