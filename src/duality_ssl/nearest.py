"""The names that a mistyped one may have meant."""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """Those that go on where the name ends, the shortest first, then those that are spelt alike.

    Neither case nor hyphens count: ``ResNet`` means ``resnet18``, ``fashion-mnist`` its namesake.

    Args:
        name: What was written.
        names: What is known.
        count: Most names to find.
    """
    plain = {_plain(known): known for known in names}
    wanted = _plain(name)
    longer = sorted((known for known in plain if wanted and known.startswith(wanted)), key=len)
    alike = get_close_matches(wanted, plain, n=count, cutoff=0.6)
    return [plain[known] for known in dict.fromkeys([*longer[:count], *alike])][:count]


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Ask `` Did you mean a, b?``, with a space before it; nothing where no name comes near."""
    found = nearest(name, names)
    return f" Did you mean {', '.join(found)}?" if found else ""


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")
