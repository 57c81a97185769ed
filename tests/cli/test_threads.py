"""The command limits how long idle threads spin, before torch is loaded, unless the user did."""

import os
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from duality_ssl.__main__ import limit_spinning, main

WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


@pytest.fixture(autouse=True)
def unsaid(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that does not set it, before and after."""
    for name in WAITING:
        monkeypatch.setenv(name, "")  # so that it is put back at the end
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, {"GOMP_SPINCOUNT": "1000"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
    ],
    ids=["not set", "the count", "the policy"],
)
def test_threads_wait_as_the_user_says_or_for_a_short_while(
    said: dict[str, str], expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    limit_spinning()
    assert {name: os.environ[name] for name in WAITING if name in os.environ} == expected


def test_it_is_set_before_the_command_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("duality_ssl.cli.main", lambda: seen.append(os.environ["GOMP_SPINCOUNT"]))
    main()
    assert seen == ["1000"]


def test_it_is_set_before_torch_is_loaded() -> None:
    code = "import sys, duality_ssl.__main__; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_command_starts_there() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    module, _, function = project["project"]["scripts"]["duality-ssl"].partition(":")
    assert getattr(import_module(module), function) is main
