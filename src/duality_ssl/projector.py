"""The projector, written in the paper's notation.

``"8192-8192-2048"`` is a stack of linear layers of these widths; the letter ``d`` stands for the
embedding dimension: ``"d-d-d"``, ``"2048-d"`` and ``"8192-8192-d"`` are the paper's scenarios.
"""

from torch import nn


def parse_projector(spec: str, embedding_dim: int | None = None) -> list[int]:
    """Translate the paper's notation into the widths of the layers.

    Args:
        spec: Widths joined by ``-``; each is a positive whole number or the letter ``d``.
        embedding_dim: What ``d`` stands for. It may also repeat the last width.

    Returns:
        The output widths of the linear layers in order; the last is that of the embeddings.

    Raises:
        ValueError: If a part is neither a positive whole number nor ``d``, if ``d`` has no value,
            or if ``embedding_dim`` contradicts the last width.

    Example:
        >>> parse_projector("8192-8192-d", 512)
        [8192, 8192, 512]
    """
    if embedding_dim is not None and embedding_dim < 1:
        raise ValueError(f"Expected `embedding_dim` to be at least 1, but got {embedding_dim}.")
    widths: list[int] = []
    for position, part in enumerate(spec.split("-"), start=1):
        if part == "d":
            if embedding_dim is None:
                raise ValueError(
                    f"Expected a number for the letter d of projector {spec!r}, but "
                    f"`embedding_dim` is not set: set it, or write the number in place of d."
                )
            widths.append(embedding_dim)
        # `isdecimal` alone takes other scripts' digits.
        elif part.isascii() and part.isdecimal() and int(part) > 0:
            widths.append(int(part))
        else:
            raise ValueError(
                f"Expected `projector` to be positive widths or the letter d, joined by single "
                f'hyphens, such as "8192-8192-2048" or "2048-d", but part {position} of {spec!r} '
                f"is {repr(part) if part else 'empty'}."
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
    """Build the projector: ``(N, in_features)`` to ``(N, D)``.

    Every linear layer but the last is followed by batch norm and ReLU; the last has no activation,
    no batch norm and no bias, as in VICReg's released code. Unlike in that code the hidden layers
    have no bias either: the batch norm that follows subtracts it again.

    Args:
        spec: Widths in the paper's notation, see `parse_projector`.
        in_features: Columns of the backbone's output, its ``num_features``.
        embedding_dim: What the letter ``d`` of ``spec`` stands for.

    Raises:
        ValueError: If ``spec`` cannot be read or ``in_features`` is not positive.

    Example:
        >>> create_projector("512-d", 128, embedding_dim=64)[-1]
        Linear(in_features=512, out_features=64, bias=False)
    """
    if in_features < 1:
        raise ValueError(f"Expected `in_features` to be at least 1, but got {in_features}.")
    *hidden, last = parse_projector(spec, embedding_dim)
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(in_features, width, bias=False), nn.BatchNorm1d(width)]
        layers += [nn.ReLU(inplace=True)]
        in_features = width
    return nn.Sequential(*layers, nn.Linear(in_features, last, bias=False))
