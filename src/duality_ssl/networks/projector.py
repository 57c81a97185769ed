"""Projector and predictor, written in the paper's notation.

``"8192-8192-2048"`` is a stack of linear layers of these widths; the letter ``d`` stands for the
embedding dimension: ``"d-d-d"``, ``"2048-d"`` and ``"8192-8192-d"`` are the paper's scenarios. A
letter after the widths changes the end: ``n`` adds a batch norm without affine parameters
(``"2048-2048-2048-n"``), ``b`` gives the last layer a bias (``"512-d-b"``).
"""

import re

from torch import nn

_WIDTH = re.compile("[1-9][0-9]{0,6}")
_WIDEST = 2**20  # more is a typing error
_ENDS = ("n", "b")


def parse_projector(
    spec: str, embedding_dim: int | None = None, name: str = "projector"
) -> list[int]:
    """Translate the paper's notation into the output widths of the linear layers.

    Args:
        spec: Widths joined by ``-``; each is a positive whole number or the letter ``d``. An ``n``
            or ``b`` may follow the last.
        embedding_dim: Width that ``d`` stands for. It may also repeat the last width.
        name: What the widths are of, for messages.

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
    parts = str(spec).split("-")
    if len(parts) > 1 and parts[-1] in _ENDS:
        parts.pop()
    widths: list[int] = []
    for position, part in enumerate(parts, start=1):
        if part == "d":
            if embedding_dim is None:
                raise ValueError(
                    f"Expected a number for the letter d of {name} {spec!r}, but "
                    f"`embedding_dim` is not set."
                )
            widths.append(embedding_dim)
        elif _WIDTH.fullmatch(part) and int(part) <= _WIDEST:
            widths.append(int(part))
        else:
            raise ValueError(
                f"Expected `{name}` to be widths of 1 to {_WIDEST} or the letter d, joined by "
                f'single hyphens, such as "8192-8192-2048" or "2048-d", but part {position} of '
                f"{spec!r} is {repr(part) if part else 'empty'}."
            )
    if embedding_dim not in (None, widths[-1]):
        raise ValueError(
            f"Expected `embedding_dim` to be the last width of {name} {spec!r}, but got "
            f"{embedding_dim}: leave it out, or end the {name} with the letter d."
        )
    return widths


def create_projector(
    spec: str, in_features: int, embedding_dim: int | None = None, name: str = "projector"
) -> nn.Sequential:
    """Build the layers ``(N, in_features)`` to ``(N, D)`` of a `parse_projector` notation.

    Every linear layer but the last is followed by batch norm and ReLU; the last has no activation,
    no batch norm and no bias, as in VICReg's released code, unless ``n`` or ``b`` ends the
    notation. Unlike there the hidden layers have no bias either: the batch norm that follows would
    subtract it.

    Example:
        >>> create_projector("512-d", 128, embedding_dim=64)[-1]
        Linear(in_features=512, out_features=64, bias=False)
    """
    *hidden, last = parse_projector(spec, embedding_dim, name)
    layers: list[nn.Module] = []
    for width in hidden:
        linear = nn.Linear(in_features, width, bias=False)
        layers += [linear, nn.BatchNorm1d(width), nn.ReLU(inplace=True)]
        in_features = width
    layers.append(nn.Linear(in_features, last, bias=spec.endswith("-b")))
    if spec.endswith("-n"):
        layers.append(nn.BatchNorm1d(last, affine=False))
    return nn.Sequential(*layers)


def output_width(head: nn.Module) -> int:
    """Width D of the rows ``(N, D)`` that a head returns, the output of its last linear layer."""
    return [layer for layer in head.modules() if isinstance(layer, nn.Linear)][-1].out_features
