"""Names of options: registering them, importing dotted paths, and the nearest to a mistake.

A config names classes, and to import them runs code. A config that the user passes may do so; that
beside a checkpoint, and the arguments in a checkpoint, are read under `limit_imports`.
"""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import set_parsing_settings

from duality_ssl._internals.jsonargparse import ImportDenied, import_object, parsing_settings

T = TypeVar("T")


def register(known: dict[str, T], name: str, value: T, reserved: Collection[str] = ()) -> T:
    """Give a class or function a name; the same one twice, as when a notebook's cell is run again.

    A ``ValueError`` says that the name is taken, by another one in ``known`` or in ``reserved``.
    """
    if name in reserved or _place(known.get(name, value)) != _place(value):
        raise ValueError(
            f"Expected a new name, but {name!r} is taken: give the decorator another one."
        )
    known[name] = value
    return value


def _place(value: object) -> tuple[object, object]:
    """Where a class or function is defined; for anything else the value itself."""
    return getattr(value, "__module__", None), getattr(value, "__qualname__", value)


def nearest(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """The names that begin with a name, the shortest first, then those spelt alike.

    ``ResNet`` finds ``resnet18``, ``fashion-mnist`` finds ``fashion_mnist``.
    """
    plain = {_folded(known): known for known in names}
    wanted = _folded(name)
    longer = sorted((known for known in plain if wanted and known.startswith(wanted)), key=len)
    alike = get_close_matches(wanted, plain, n=count, cutoff=0.6)
    return [plain[known] for known in dict.fromkeys([*longer[:count], *alike])][:count]


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The question `` Did you mean a, b?``, with its space; empty if no name is near."""
    found = nearest(name, names)
    return f" Did you mean {', '.join(found)}?" if found else ""


def _folded(name: str) -> str:
    return name.lower().replace("-", "_")


_KNOWN = ["datetime.timedelta", "duality_ssl", "lightning", "pl_bolts", "torch.optim"]
_CALLS_ANYTHING = ["lightning.pytorch.callbacks.lambda_function"]


@contextmanager
def imports_as_before() -> Iterator[None]:
    """Undo `limit_imports` at the end: jsonargparse keeps its settings for the whole process."""
    before = dict(parsing_settings)
    try:
        yield
    finally:
        parsing_settings.update(before)


def limit_imports(named: Iterable[str]) -> None:
    """Have jsonargparse import from known packages only, and from modules the user has named."""
    own = [name for name in named if name.partition(".")[0] != "jsonargparse"]
    set_parsing_settings(
        import_path_denylist=["*", *_CALLS_ANYTHING],
        import_path_allowlist=[*_KNOWN, *own],
        instantiate_subclass_spec_in_any=False,
    )


def import_path(path: str) -> Any:
    """Import the class or function at a path such as ``mine.Stripes``; None without such a module.

    A ``ValueError`` says that the module has no such name, or that `limit_imports` refuses it.
    """
    if "." not in path or not all(part.isidentifier() for part in path.split(".")):
        return None
    try:
        return import_object(path)
    except ImportDenied as error:
        raise ValueError(
            f"A checkpoint, or the config beside it, names {path}. It is imported only if you name "
            "it, too: on the command line, or as an argument of load_from_checkpoint."
        ) from error
    except ModuleNotFoundError as error:
        if f"{path}.".startswith(f"{error.name}."):
            return None
        raise  # an import inside the module fails
    except AttributeError as error:
        if error.name not in path.split("."):
            raise
        raise ValueError(
            f"There is no {error.name!r} in {getattr(error.obj, '__name__', path)!r}."
            f"{did_you_mean(error.name, dir(error.obj))}"
        ) from error


def named_modules(values: Iterable[Any]) -> set[str]:
    """Modules of the dotted names in some values: words of a command line, contents of configs."""
    parsed = (_parsed(value) if isinstance(value, str) else value for value in values)
    dotted = [leaf for content in parsed for leaf in _leaves(content) if "." in leaf]
    return {
        name.rpartition(".")[0]
        for name in dotted
        if all(part.isidentifier() for part in name.split("."))
    }


def _parsed(word: str) -> Any:
    value = word.partition("=")[2] if word.startswith("--") else word
    try:  # stranger.ckpt is a file and allows no module `stranger`
        return None if Path(value).exists() else yaml.safe_load(value)
    except (OSError, yaml.YAMLError, ValueError, RecursionError):  # the parser says what is wrong
        return None


def _leaves(content: Any) -> Iterator[str]:
    """The strings in nested lists and mappings."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict | list):
        for child in content.values() if isinstance(content, dict) else content:
            yield from _leaves(child)
