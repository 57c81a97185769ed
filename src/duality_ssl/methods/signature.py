"""The signature of a method: the arguments of the training step and of its criterion, in one."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from duality_ssl.criteria import Criterion

DIMENSIONS = "dimensions"
"""Argument of a criterion that the method sets to the width of its embeddings."""


def takes_dimensions(criterion: type[Criterion]) -> bool:
    """Whether a criterion is built for embeddings of one width."""
    return DIMENSIONS in inspect.signature(criterion).parameters


def method_init(
    method: type, step: type, criterion: type[Criterion], defaults: Mapping[str, Any]
) -> Callable[..., None]:
    """Build the ``__init__`` of a method, whose signature and docstring name all arguments.

    Args:
        method: The method, for messages.
        step: Class of the training step; its ``__init__`` takes the criterion's as keywords, too.
        criterion: The method's criterion.
        defaults: Defaults of the method in place of those of the step and the criterion.

    Raises:
        ValueError: If a default is of no argument.
    """
    *shared, _ = inspect.signature(step.__init__).parameters.values()  # type: ignore[misc]
    own = inspect.signature(criterion).parameters.values()
    # a criterion without an __init__ has the *args and **kwargs of torch.nn.Module
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = (each for each in own if each.kind not in variadic and each.name != DIMENSIONS)
    parameters = [*shared, *named]
    if unknown := sorted(defaults.keys() - {each.name for each in parameters[1:]}):
        raise ValueError(
            f"Expected the keywords of class {method.__name__} to be arguments of "
            f"{step.__name__} or {criterion.__name__}, but got `{unknown[0]}`."
        )

    def __init__(self: Any, **kwargs: Any) -> None:
        step.__init__(self, **{**defaults, **kwargs})  # type: ignore[misc]

    __init__.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            parameters[0],
            *(
                each.replace(kind=each.KEYWORD_ONLY, default=defaults.get(each.name, each.default))
                for each in parameters[1:]
            ),
        ]
    )
    docs = (inspect.getdoc(cls) or "" for cls in (criterion, step))
    arguments = "\n".join(doc.partition("Args:\n")[2].partition("\n\n")[0] for doc in docs)
    __init__.__doc__ = f"Build the network and its criterion.\n\nArgs:\n{arguments}"
    return __init__
