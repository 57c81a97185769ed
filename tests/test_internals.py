"""Private names of Lightning, jsonargparse and torch: all in `_internals`, and all there."""

import ast
import importlib
import importlib.metadata
import inspect
import pkgutil
import re
import signal
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.callback_stubs import StubData, StubModule, trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from packaging.requirements import Requirement

import duality_ssl
from duality_ssl._internals import jsonargparse, lightning
from duality_ssl._internals import torch as torch_internals
from duality_ssl.registry import imports_as_before, limit_imports

PACKAGE = Path(duality_ssl.__file__).parent
LIBRARIES = ("lightning", "jsonargparse", "torch", "argparse")
# private by name alone: documented by the standard library
DOCUMENTED = {"_replace", "_exit", "_Unpickler"}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "_internals" not in path.parts)


def is_private(name: str) -> bool:
    return re.match(r"_[A-Za-z]", name) is not None and name not in DOCUMENTED


@cache
def own_names() -> set[str]:
    """Private names that the package itself defines: functions, classes, attributes, globals."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found |= {node.attr} if ast.unparse(node.value) in ("self", "cls") else set()
    return found


def used(path: Path) -> set[str]:
    """Private names that a file imports, or gets from an object, by `getattr` too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(LIBRARIES):
            found |= {part for part in (node.module or "").split(".") if is_private(part)}
            found |= {alias.name for alias in node.names if is_private(alias.name)}
        elif isinstance(node, ast.Attribute) and node.attr not in own_names():
            found |= {node.attr} if is_private(node.attr) else set()
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr"):
            name = node.args[1]
            if isinstance(name, ast.Constant) and is_private(name.value):
                found.add(name.value)
    return found


@cache
def overridden() -> dict[str, set[str]]:
    """Private names of the libraries' classes that a class of the package defines anew, by file."""
    found: dict[str, set[str]] = {}
    for module in pkgutil.walk_packages([str(PACKAGE)], "duality_ssl."):
        if module.name.endswith("__main__"):
            continue
        for _, cls in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if cls.__module__ != module.name:
                continue
            theirs = {
                name
                for base in cls.__mro__[1:]
                if base.__module__.startswith(LIBRARIES)
                for name in vars(base)
            }
            path = Path(inspect.getfile(cls)).relative_to(PACKAGE)
            names = {name for name in vars(cls) if is_private(name)} & theirs
            # the two are made by metaclasses
            found.setdefault(str(path), set()).update(names - {"_abc_impl", "_backward_cls"})
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_private_names_are_in_internals(path: Path) -> None:
    name = str(path.relative_to(PACKAGE))
    found = used(path) | overridden().get(name, set())
    assert not found, (
        f"{name} uses private names. Use public ones, or put these into duality_ssl/_internals "
        "with the reason and a test."
    )


def bound(library: str) -> Requirement:
    """What pyproject.toml asks of a library."""
    project = tomllib.loads((PACKAGE.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    requirements = map(Requirement, project["project"]["dependencies"])
    return next(requirement for requirement in requirements if requirement.name == library)


@pytest.mark.parametrize("library", ["lightning", "jsonargparse", "torch"])
def test_releases_are_bounded_and_these_are_within(library: str) -> None:
    specifier = bound(library).specifier
    assert importlib.metadata.version(library) in specifier
    assert "99" not in specifier


@contextmanager
def names_of(library: str) -> Iterator[None]:
    """Say where to look if what a test does with private names fails."""
    try:
        yield
    except Exception as error:
        raise AssertionError(
            f"{library} {importlib.metadata.version(library)} has changed a private name that "
            f"duality_ssl/_internals uses: mend it there, or the bound {bound(library)} of "
            "pyproject.toml."
        ) from error


@names_of("lightning")
def test_lightning_loads_the_states_of_loaders_once(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=1)
    run.fit(StubModule(), datamodule=StubData())
    loaded: list[Any] = []
    loop = run.fit_loop
    loop.load_state_dict(loop.state_dict() | {"state_dict": {"combined_loader": [{"batches": 3}]}})
    loop._combined_loader = SimpleNamespace(_load_state_dicts=loaded.append)
    for _ in range(2):
        lightning.load_loader_states(run)
    assert loaded == [[{"batches": 3}]]


@names_of("lightning")
def test_lightning_counts_the_steps_that_it_logs_at(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=3)
    run.fit(StubModule(), datamodule=StubData())
    assert run.fit_loop.state_dict()["epoch_loop.state_dict"][lightning.LOGGED_STEPS] == 3


@names_of("lightning")
def test_lightning_knows_the_environment_of_one_process(tmp_path: Path) -> None:
    environment = LightningEnvironment()
    assert lightning.cluster_environment(trainer(tmp_path, plugins=[environment])) is environment


@names_of("lightning")
def test_lightning_restores_the_handlers_that_it_is_given(tmp_path: Path) -> None:
    before, run = signal.getsignal(signal.SIGUSR1), trainer(tmp_path)
    try:
        lightning.restore_at_teardown(run, {signal.SIGUSR1: signal.SIG_IGN})
        run._signal_connector.teardown()
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, before)


@names_of("jsonargparse")
def test_jsonargparse_imports_under_settings_that_can_be_put_back() -> None:
    with imports_as_before():
        assert jsonargparse.import_object("pathlib.Path") is Path
        limit_imports([])
        with pytest.raises(jsonargparse.ImportDenied):
            jsonargparse.import_object("pathlib.Path")
    assert jsonargparse.import_object("pathlib.Path") is Path


@pytest.mark.parametrize("asked", [False, True])
@names_of("lightning")
def test_lightning_says_whether_batch_norm_is_synchronized(tmp_path: Path, asked: bool) -> None:
    run = trainer(tmp_path, strategy="ddp", sync_batchnorm=asked)
    assert lightning.has_sync_batchnorm(run) == asked


@names_of("torch")
def test_torch_computes_with_lists_of_tensors() -> None:
    ones = [torch.ones(2), torch.ones(3)]
    torch_internals.foreach_add_(ones, ones, alpha=2)
    torch_internals.foreach_mul_(ones, 2)
    torch_internals.foreach_addcmul_(ones, ones, ones, value=0.5)
    assert [tensor.tolist() for tensor in ones] == [[24.0] * 2, [24.0] * 3]
    norms = torch_internals.foreach_norm(ones, 2, torch.float64)
    assert [norm.item() for norm in norms] == pytest.approx([24 * 2**0.5, 24 * 3**0.5])
    assert norms[0].dtype == torch.float64
    torch_internals.foreach_lerp_(ones, [torch.zeros(2), torch.zeros(3)], 0.25)
    assert [tensor.tolist() for tensor in ones] == [[18.0] * 2, [18.0] * 3]
