"""The projector, written in the paper's notation.

``"8192-8192-2048"`` is a stack of linear layers of these widths; the letter ``d`` stands for the
embedding dimension: ``"d-d-d"``, ``"2048-d"`` and ``"8192-8192-d"`` are the paper's scenarios.
"""

import re

from torch import nn

_WIDTH = re.compile("[1-9][0-9]{0,6}")
_WIDEST = 2**20  # more is a typing error


def parse_projector(spec: str, embedding_dim: int | None = None) -> list[int]:
    """Translate the paper's notation into the output widths of the linear layers.

    Args:
        spec: Widths joined by ``-``; each is a positive whole number or the letter ``d``.
        embedding_dim: Width that ``d`` stands for. It may also repeat the last width.

    Raises:
        ValueError: If a part is neither a whole number of 1 to 1,048,576 nor ``d``, if ``d`` has no
            value, or if ``embedding_dim`` contradicts the last width.

    Example:
        >>> parse_projector("8192-8192-d", 512)
        [8192, 8192, 512]
    """
    if embedding_dim is not None and embedding_dim not in range(1, _WIDEST + 1):
        raise ValueError(
            f"Expected `embedding_dim` in 1 ... {_WIDEST}, or not set, but got {embedding_dim!r}."
        )
    widths: list[int] = []
    for position, part in enumerate(str(spec).split("-"), start=1):
        if part == "d":
            if embedding_dim is None:
                raise ValueError(
                    f"Expected a number for the letter d of projector {spec!r}, but "
                    f"`embedding_dim` is not set."
                )
            widths.append(embedding_dim)
        elif _WIDTH.fullmatch(part) and int(part) <= _WIDEST:
            widths.append(int(part))
        else:
            raise ValueError(
                f"Expected `projector` to be widths of 1 to {_WIDEST} or the letter d, joined by "
                f'single hyphens, such as "8192-8192-2048" or "2048-d", but part {position} of '
                f"{spec!r} is {repr(part) if part else 'empty'}."
            )
    if embedding_dim not in (None, widths[-1]):
        raise ValueError(
            f"Expected `embedding_dim` to be the last width of projector {spec!r}, but got "
            f"{embedding_dim}: leave it out, or end the projector with the letter d."
        )
    return widths


def create_projector(
    spec: str, in_features: int, embedding_dim: int | None = None
) -> nn.Sequential:
    """Build the projector ``(N, in_features)`` to ``(N, D)`` of a `parse_projector` notation.

    Every linear layer but the last is followed by batch norm and ReLU; the last has no activation,
    no batch norm and no bias, as in VICReg's released code. Unlike there the hidden layers have no
    bias either: the batch norm that follows would subtract it.

    Example:
        >>> create_projector("512-d", 128, embedding_dim=64)[-1]
        Linear(in_features=512, out_features=64, bias=False)
    """
    *hidden, last = parse_projector(spec, embedding_dim)
    layers: list[nn.Module] = []
    for width in hidden:
        linear = nn.Linear(in_features, width, bias=False)
        layers += [linear, nn.BatchNorm1d(width), nn.ReLU(inplace=True)]
        in_features = width
    return nn.Sequential(*layers, nn.Linear(in_features, last, bias=False))
