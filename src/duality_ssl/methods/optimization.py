"""Learning rate, parameter groups and schedule of a fit."""

import inspect
import math
from collections.abc import Container, Mapping
from fnmatch import fnmatchcase
from typing import Any

from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_cosine(
    optimizer: Optimizer, warmup_steps: float, total_steps: float, floor: float
) -> LambdaLR:
    r"""Schedule every group's learning rate: linear warm-up from zero, then cosine to a floor.

    With :math:`W` warm-up steps of :math:`T` in all, step :math:`k = 0, 1, \dots` has the rate
    :math:`\mathrm{lr} \cdot k / (W - 1)` while :math:`k < W`, and from then on

    .. math::
        \mathrm{lr} \left(f + (1 - f) \frac{1 + \cos(\pi (k - W) / (T - W))}{2} \right)

    up to step :math:`T`, and :math:`f \cdot \mathrm{lr}` after it. A group with ``"constant"``
    keeps its rate from the first step on.

    Args:
        optimizer: Optimizer whose groups hold the learning rates at the end of the warm-up.
        warmup_steps: Optimizer steps of warm-up; from ``total_steps`` on there is no cosine.
        total_steps: Optimizer steps of the whole training; with ``math.inf`` there is no decay.
        floor: Last learning rate :math:`f` as a fraction of the highest.
    """

    def factor(step: int) -> float:
        if step < warmup_steps:
            return step / max(1, warmup_steps - 1)
        progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2

    def constant(step: int) -> float:
        return 1.0

    groups = optimizer.param_groups
    return LambdaLR(optimizer, [constant if g.get("constant") else factor for g in groups])


def parameter_groups(
    module: nn.Module,
    weight_decay: float,
    constant: nn.Module | None = None,
    scales: Mapping[nn.Parameter, float] | None = None,
) -> list[dict[str, Any]]:
    """Split the trainable parameters of a module into two groups for an optimizer.

    The second group, neither decayed nor adapted by `~duality_ssl.optim.LARS`, holds the biases,
    the parameters of normalization layers and all other vectors, also those with further dimensions
    of size one (the layer scale of a ConvNeXt has shape ``(C, 1, 1)``). It also holds what a module
    at any depth names by a method ``no_weight_decay()``, as timm's transformers do for position
    embeddings and tokens; ``*`` stands for any part of a name.

    The first group holds the rest, and LARS adapts it even if ``weight_decay`` is zero; other
    optimizers ignore ``"adapt"``. Either group may be empty.

    Parameters whose learning rate is scaled by a factor below 1, in ``scales``, make two groups of
    the same kinds for each factor, from the largest to the smallest; ``"scale"`` holds it.

    The parameters of ``constant``, a part of the module whose learning rate follows no schedule,
    make two more groups of the same kinds, the last, marked by ``"constant"``.

    Raises:
        ValueError: If the module has nothing to train.
    """
    # of all norms these alone may have weights that are no vectors
    norms = (nn.LayerNorm, nn.RMSNorm)
    weights: dict[nn.Parameter, None] = {}  # ordered sets: layers may share a parameter
    plain: dict[nn.Parameter, None] = {}
    exempt = {
        parameter
        for layer in module.modules()
        for pattern in getattr(layer, "no_weight_decay", tuple)()
        for name, parameter in layer.named_parameters(remove_duplicate=False)
        if fnmatchcase(name, pattern)
    }
    for layer in module.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            vector = parameter.numel() == max(parameter.shape, default=1)
            excluded = vector or name.endswith("bias") or isinstance(layer, norms)
            if parameter.requires_grad:
                (plain if excluded or parameter in exempt else weights)[parameter] = None
    if not weights and not plain:
        raise ValueError(
            f"Expected {type(module).__name__} to have trainable parameters, but it has none."
        )
    held = set() if constant is None else set(constant.parameters())
    scales = scales or {}
    factors = sorted({scales[p] for p in (*weights, *plain) if p in scales} - {1.0}, reverse=True)
    flags: list[dict[str, Any]] = [{}, *({"scale": factor} for factor in factors)]
    flags += [{"constant": True}] if held else []
    groups = []
    for flag in flags:
        for parameters, decay, adapt in ((weights, weight_decay, True), (plain, 0.0, False)):
            chosen = [p for p in parameters if flag == _flag(p, held, scales)]
            groups.append({"params": chosen, "weight_decay": decay, "adapt": adapt, **flag})
    return groups


def _flag(
    parameter: nn.Parameter, held: Container[nn.Parameter], scales: Mapping[nn.Parameter, float]
) -> dict[str, Any]:
    """What the groups of a parameter have beside its kind."""
    if parameter in held:
        return {"constant": True}
    scale = scales.get(parameter, 1.0)
    return {} if scale == 1 else {"scale": scale}


def global_batch(trainer: Trainer) -> int:
    """Images of one optimizer step, over all processes and accumulated batches."""
    size = getattr(getattr(trainer, "datamodule", None), "batch_size", None)
    if size is None:
        trainer.fit_loop.setup_data()  # before that there is no loader to ask
        loader = trainer.train_dataloader
        sampler = getattr(loader, "batch_sampler", None)
        size = getattr(loader, "batch_size", None) or getattr(sampler, "batch_size", None)
    if size is None:
        raise ValueError(
            "Expected a `batch_size`, the images of one process's batch, to scale the learning "
            "rate to: give the data module, or the loader's batch sampler, this attribute."
        )
    return size * trainer.world_size * trainer.accumulate_grad_batches


def total_steps(trainer: Trainer) -> float:
    """Optimizer steps of the whole fit; infinite, with a warning, if that number is not known."""
    total = trainer.estimated_stepping_batches
    if 0 < total < math.inf:
        return total
    # for epochs of a loader without a length Lightning estimates -1
    rank_zero_warn(
        "The learning rate stays constant after the warm-up, since the length of the fit is not "
        "known. Set --trainer.max_steps, or --trainer.max_epochs with a loader that has a length."
    )
    return math.inf


def warmup_steps(trainer: Trainer, epochs: float, total: float) -> float:
    """Optimizer steps of a warm-up of so many epochs, at most ``total``."""
    if epochs == 0:
        return 0
    trainer.fit_loop.setup_data()  # before that the length of an epoch is not known
    if math.isinf(trainer.num_training_batches):
        raise ValueError(
            f"Expected a loader that has a length, to warm up for {epochs:g} epochs. Set "
            "--model.warmup_epochs 0, or --trainer.limit_train_batches to the batches of an epoch."
        )
    per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
    steps = round(epochs * per_epoch)
    if steps >= total and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        rank_zero_warn(
            f"The warm-up of {epochs:g} epochs ({steps} steps) is as long as the whole training "
            f"({total} steps): there is no cosine. Set --model.warmup_epochs lower."
        )
    return min(steps, total)


def warn_of_replaced(optimizer: Optimizer, **used: float) -> None:
    """Warn if the user gave the optimizer a value that its groups replace by one of ``used``."""
    parameters = inspect.signature(type(optimizer)).parameters
    for name, value in used.items():
        given = optimizer.defaults.get(name, value)
        # 0 is no decision: LARS's decay of 0 remains when the command line changes the class
        if name in parameters and given not in (parameters[name].default, value, 0):
            rank_zero_warn(
                f"The optimizer's own {name} {given:g} is replaced by {value:g}. "
                f"Set --model.{'base_lr' if name == 'lr' else name} instead."
            )
