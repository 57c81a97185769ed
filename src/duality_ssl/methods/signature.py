"""The signature of a method: the shared arguments and those of its criterion."""

import inspect
from collections.abc import Callable
from typing import Any


def init_with_criterion_arguments(method: type, criterion: type) -> Callable[..., None]:
    """Build an ``__init__`` that documents the arguments of a method and of its criterion.

    So the defaults of a criterion stand in one signature, its own, and the command line sees all
    arguments of a method, whose own ``__init__`` ends in ``**criterion_args``.
    """
    *shared, _ = inspect.signature(method.__init__).parameters.values()  # type: ignore[misc]
    own = inspect.signature(criterion).parameters.values()

    def __init__(self: Any, **kwargs: Any) -> None:
        method.__init__(self, **kwargs)  # type: ignore[misc]

    __init__.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [*shared, *(parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in own)]
    )
    arguments = "\n".join(_documented_arguments(cls) for cls in (criterion, method))
    __init__.__doc__ = f"Build the network and its criterion.\n\nArgs:\n{arguments}"
    return __init__


def _documented_arguments(cls: type) -> str:
    """The lines under ``Args:`` in the docstring of a class."""
    return (inspect.getdoc(cls) or "").partition("Args:\n")[2].partition("\n\n")[0]
