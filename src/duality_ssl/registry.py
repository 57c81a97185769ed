"""Names that options take: registered ones, dotted paths, and the valid ones nearest to a mistake.

A config names classes, and to name a class is to have its module imported: code is run. That is
what it is for where the user passes the config; the config that is found beside a checkpoint, and
the arguments inside one, may be anybody's: `limit_imports`.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import set_parsing_settings

from duality_ssl._internals.jsonargparse import ImportDenied, import_object, parsing_settings

T = TypeVar("T")


def register(known: dict[str, T], name: str, value: T, reserved: Collection[str] = ()) -> None:
    """Give a class or function a name.

    Args:
        known: What has a name already; the new one is added to it.
        name: The name.
        value: The class or function. The same one may come again, as it does when a notebook's cell
            is run twice.
        reserved: Names that are taken, too.

    Raises:
        ValueError: If the name is taken.
    """
    if name in reserved or _place(known.get(name, value)) != _place(value):
        raise ValueError(
            f"Expected a new name, but {name!r} is taken: give the decorator another one."
        )
    known[name] = value


def _place(value: object) -> tuple[object, object]:
    """Where a class or function is defined; anything else is the same as itself alone."""
    return getattr(value, "__module__", None), getattr(value, "__qualname__", value)


def nearest(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """Those that go on where the name ends, the shortest first, then those that are spelt alike.

    Neither case nor hyphens count: ``ResNet`` means ``resnet18``, ``fashion-mnist`` its namesake.

    Args:
        name: What was written.
        names: What is known.
        count: Most names to find.
    """
    plain = {_folded(known): known for known in names}
    wanted = _folded(name)
    longer = sorted((known for known in plain if wanted and known.startswith(wanted)), key=len)
    alike = get_close_matches(wanted, plain, n=count, cutoff=0.6)
    return [plain[known] for known in dict.fromkeys([*longer[:count], *alike])][:count]


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Ask `` Did you mean a, b?``, with a space before it; nothing where no name comes near."""
    found = nearest(name, names)
    return f" Did you mean {', '.join(found)}?" if found else ""


def _folded(name: str) -> str:
    return name.lower().replace("-", "_")


_KNOWN = ["datetime.timedelta", "duality_ssl", "lightning", "pl_bolts", "torch.optim"]
_CALLS_ANYTHING = ["lightning.pytorch.callbacks.lambda_function"]


@contextmanager
def imports_as_before() -> Iterator[None]:
    """Forget at the end what `limit_imports` has said: jsonargparse would keep it for ever."""
    before = dict(parsing_settings)
    try:
        yield
    finally:
        parsing_settings.update(before)


def limit_imports(named: Iterable[str]) -> None:
    """Have jsonargparse refuse every class and function from elsewhere than known packages.

    Args:
        named: Modules of the user's own, which are allowed too.
    """
    own = [name for name in named if name.partition(".")[0] != "jsonargparse"]
    set_parsing_settings(
        import_path_denylist=["*", *_CALLS_ANYTHING],
        import_path_allowlist=[*_KNOWN, *own],
        instantiate_subclass_spec_in_any=False,
    )


def import_path(path: str) -> Any:
    """Import what an option names by a dotted path, such as ``mine.Stripes``.

    Returns:
        The class or function; None if the text is no dotted path, or there is no such module.

    Raises:
        ValueError: If the module has nothing of that name, or `limit_imports` refuses the path.
    """
    if "." not in path or not all(part.isidentifier() for part in path.split(".")):
        return None
    try:
        return import_object(path)
    except ImportDenied as error:
        raise ValueError(
            f"A checkpoint, or the config beside it, names {path}, and nothing is imported for it "
            "that you do not name. If you trust it, name it yourself: on the command line, or as "
            "an argument of load_from_checkpoint."
        ) from error
    except ModuleNotFoundError as error:
        if f"{path}.".startswith(f"{error.name}."):
            return None
        raise  # the module is there, and needs another one
    except AttributeError as error:
        if error.name not in path.split("."):
            raise
        raise ValueError(
            f"There is no {error.name!r} in {getattr(error.obj, '__name__', path)!r}."
            f"{did_you_mean(error.name, dir(error.obj))}"
        ) from error


def named_modules(words: Sequence[str], configs: Iterable[Path] = ()) -> set[str]:
    """Modules of the classes and functions that a command line and its configs name."""
    values = [word.partition("=")[2] if word.startswith("--") else word for word in words]
    texts = [value for value in values if not _is_there(value)]
    texts += [config.read_text("utf-8", "replace") for config in configs if config.is_file()]
    paths = [leaf for text in texts for leaf in _leaves(_parsed(text))]
    dotted = [path for path in paths if all(part.isidentifier() for part in path.split("."))]
    return {path.rpartition(".")[0] for path in dotted if "." in path}


def _is_there(value: str) -> bool:
    try:
        return Path(value).exists()
    except OSError:  # longer than a name can be
        return False


def _parsed(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):  # who reads it next says what is wrong
        return None


def _leaves(content: Any) -> Iterator[str]:
    """The strings in nested lists and mappings."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict | list):
        for child in content.values() if isinstance(content, dict) else content:
            yield from _leaves(child)
