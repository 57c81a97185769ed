"""Write the table of docs/methods.md from the classes.

    python benchmarks/table_of_methods.py

A row is a method, or the config of a variant. It says what stands in the docstrings, signatures and
attributes of the method and its criterion, and in the first line of the config.
"""

import argparse
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import yaml
from studies import ROOT, write_table

from duality_ssl import methods
from duality_ssl.methods import JointEmbedding
from duality_ssl.methods.signature import DIMENSIONS, takes_dimensions
from duality_ssl.networks.projector import create_projector

PAGE = ROOT / "docs" / "methods.md"
CRITERIA = "../src/duality_ssl/criteria"
COLUMNS = ["`--model`", "`configs/methods/`", "what it does", "criterion", "paper"]
COLUMNS += ["family", "views", "needs", "side"]


def table() -> str:
    """The rows of all methods, by family."""
    families = list(dict.fromkeys(map(family, named_methods())))
    found = sorted(named_methods(), key=lambda method: families.index(family(method)))
    lines = [COLUMNS, ["---"] * len(COLUMNS), *(row for method in found for row in rows(method))]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def named_methods() -> list[type[JointEmbedding]]:
    """Every exported method, in the order of the module."""
    return [
        each
        for each in vars(methods).values()
        if isinstance(each, type)
        and issubclass(each, JointEmbedding)
        and each is not JointEmbedding
    ]


def family(method: type[JointEmbedding]) -> str:
    """What keeps the embeddings of a method apart."""
    return method.criterion_class.family


def rows(method: type[JointEmbedding]) -> Iterator[list[str]]:
    """Yield the row of a method, and one for each config of a variant."""
    first, *variants = configs(method)
    criterion = method.criterion_class
    summary = (inspect.getdoc(method) or "").partition("\n")[0].rstrip(".")
    source = f"[`{criterion.__name__}`]({CRITERIA}/{criterion.__module__.rpartition('.')[2]}.py)"
    about = [summary, source, papers(method), family(method)]
    views = "2 or more" if criterion.many_views else "2"
    cells = [f"`{method.__name__}`", f"`{first.stem}`", *about, views, needs(method)]
    yield [*cells, criterion.side]
    for path in variants:
        said = path.read_text("utf-8").partition("\n")[0].removeprefix("# ").rstrip(".")
        yield ["", f"`{path.stem}`", said, *[""] * (len(COLUMNS) - 3)]


def configs(method: type[JointEmbedding]) -> list[Path]:
    """Configs of a method, the plain one first."""
    found = ROOT.glob("configs/methods/*.yaml")
    own = [
        p for p in found if yaml.safe_load(p.read_text())["model"]["class_path"] == method.__name__
    ]
    return sorted(own, key=lambda path: (len(path.stem), path.stem))


def papers(method: type[JointEmbedding]) -> str:
    """Links of the docstring's reference: the method's own, or else its criterion's."""
    for cls in (method, method.criterion_class):
        reference = re.search(r"Reference: (.+?)(\n\n|$)", inspect.getdoc(cls) or "", re.DOTALL)
        if reference:
            parts = " ".join(reference[1].split()).split("; ")
            linked = [
                re.match(r"((?:-\S+|and|:| )*)(.+?),? (https://\S+\w)", part) for part in parts
            ]
            return "; ".join(
                f"{of}[{re.sub(r' [(].*?[)]', '', text)}]({link})"
                for of, text, link in (each.groups() for each in linked if each)
            )
    raise ValueError(
        f"Expected the docstring of {method.__name__} to have a line 'Reference: ...'."
    )


def needs(method: type[JointEmbedding]) -> str:
    """What a method takes besides views and a projector, by default."""
    criterion, parameters = method.criterion_class, inspect.signature(method).parameters
    built = criterion(**({DIMENSIONS: 2} if takes_dimensions(criterion) else {}))
    trained = [name for name, _ in built.named_parameters()]
    kept = [name for name, value in built.state_dict().items() if value.numel() > 0]
    kept = [name for name in kept if name not in trained]
    teacher = parameters["teacher_momentum"].default is not None
    found = {
        "labels": "labels" in criterion.inputs,
        "predictor": parameters["predictor"].default is not None,
        "teacher": "targets" in criterion.inputs and teacher,
        "own targets": "targets" in criterion.inputs and not teacher,
        "own head": method.create_head is not create_projector,
        "random draws": hasattr(criterion, "draw"),
        f"trains {' and '.join(trained)}": trained,
        f"keeps {' and '.join(kept)}": kept,
    }
    return ", ".join(name for name, is_needed in found.items() if is_needed)


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    ).parse_args()
    write_table(PAGE, "methods", table())
