"""Stages of a backbone, from the images to the features: which are frozen, how fast each learns."""

from contextlib import suppress
from itertools import chain
from types import SimpleNamespace
from typing import Any

from torch import nn
from torchvision.models import ConvNeXt, ResNet

# in the notation of timm: patterns of names, a stage for each and for each number in them
_RESNET = {"stem": r"conv1|bn1", "stages": r"layer(\d)"}
_CONVNEXT = {"stem": r"features\.0\.", "1": r"features\.1\.", "2": r"features\.[23]\."}
_CONVNEXT |= {"3": r"features\.[45]\.", "4": r"features\.[67]\."}
_CHILDREN = {"stem": r"stem\.", "stages": r"stages\.(\d+)\."}
_BEHIND = "?"  # a name that no pattern has


def split_stages(backbone: nn.Module) -> list[list[nn.Parameter]]:
    """Divide the parameters of a backbone into its stages, from the input to the output.

    The first stage is the stem. The others are the four stages of a ResNet or ConvNeXt, with the
    downsampling at their start, the blocks of a transformer, and for any other network of timm what
    its ``group_matcher(coarse=True)`` says. The stem of a transformer has its tokens and position
    embeddings, and its last block the norm behind it. Other parameters behind the last stage, such
    as the norm of a ConvNeXt, are in none.

    Args:
        backbone: A torchvision ResNet or ConvNeXt; or any network with timm's ``group_matcher``, or
            with children ``stem`` and ``stages``, a ``torch.nn.Sequential``, as ``resnet_tiny``.

    Raises:
        ValueError: If the stages of the backbone are not known.
    """
    from timm.models import group_parameters

    parameters = dict(backbone.named_parameters())
    names: Any = SimpleNamespace(named_parameters=lambda: ((n, n) for n in (*parameters, _BEHIND)))
    matcher = _matcher(backbone)
    stage_of = group_parameters(names, matcher, reverse=True) if matcher else {_BEHIND: 0}
    stages: list[list[nn.Parameter]] = [[] for _ in range(stage_of.pop(_BEHIND))]
    if len(stages) < 2:
        raise ValueError(
            "Expected a backbone with known stages for `freeze` and `layer_decay`: a torchvision "
            "ResNet or ConvNeXt, a timm network with `group_matcher`, or one with children `stem` "
            f"and `stages`, but got {type(backbone).__name__}. Give it these children, or leave "
            "the two options out."
        )
    for name, stage in stage_of.items():
        if stage < len(stages):
            stages[stage].append(parameters[name])
    return stages


def freeze_stages(backbone: nn.Module, count: int) -> None:
    """Exclude the parameters of the first stages from training; `hold_frozen` does the rest.

    Args:
        backbone: A backbone for `split_stages`.
        count: Number of stages, of which the stem is the first.

    Raises:
        ValueError: If the count is negative, no stage is left, or the stages are not known.
    """
    if count == 0:
        return
    stages = split_stages(backbone)
    if not 0 < count < len(stages):
        raise ValueError(
            f"Expected `freeze` in 0 to {len(stages) - 1} for a backbone of {len(stages)} stages, "
            f"the last of which has to train, but got {count}."
        )
    for parameter in chain(*stages[:count]):
        parameter.requires_grad_(False)


def hold_frozen(backbone: nn.Module, *copies: nn.Module) -> None:
    """Put what is frozen in a backbone into evaluation mode, in it and in copies of it.

    Batch norms then use their running statistics and leave them as they are. A module is frozen
    if it has parameters and none requires a gradient.
    """
    for module, *same in zip(*(each.modules() for each in (backbone, *copies)), strict=True):
        gradients = [parameter.requires_grad for parameter in module.parameters()]
        if gradients and not any(gradients):
            for each in (module, *same):
                each.eval()


def layer_scales(backbone: nn.Module, decay: float) -> dict[nn.Parameter, float]:
    r"""Factors of the learning rate by layer-wise decay, which falls from the output to the input.

    .. math:: \mathrm{lr}_s = \mathrm{lr} \cdot \gamma^{S - s}

    for stage s = 0, ..., S - 1 of S stages, the stem being 0, and the decay :math:`\gamma`. Stage S
    is what follows, the rest of the backbone and the projector, with the full rate. For a
    transformer these are the rates of BEiT, MAE and timm, whose stage S is the classifier; those of
    timm's convolutional networks decay by the block, these by the stage.

    Args:
        backbone: A backbone for `split_stages`.
        decay: :math:`\gamma`, above 0 and at most 1.

    Returns:
        The factor of each parameter of a stage; empty if the decay is 1.

    Raises:
        ValueError: If the decay is out of its range, or the stages are not known.

    Source: Bao et al., *BEiT*, ICLR 2022, https://arxiv.org/abs/2106.08254, and appendix A.1 of He
    et al., *MAE*, CVPR 2022, https://arxiv.org/abs/2111.06377, after Clark et al., *ELECTRA*, ICLR
    2020, https://arxiv.org/abs/2003.10555
    """
    if not 0 < decay <= 1:
        raise ValueError(f"Expected `layer_decay` above 0 and at most 1, but got {decay}.")
    if decay == 1:
        return {}
    stages = split_stages(backbone)
    return {p: decay ** (len(stages) - s) for s, stage in enumerate(stages) for p in stage}


def _matcher(backbone: Any) -> Any:
    if isinstance(backbone, ResNet):
        return _RESNET
    if isinstance(backbone, ConvNeXt):
        return _CONVNEXT
    if hasattr(backbone, "group_matcher"):
        with suppress(AssertionError):  # RDNet has no coarse groups
            return backbone.group_matcher(coarse=True)
    return _CHILDREN if hasattr(backbone, "stem") and hasattr(backbone, "stages") else None
