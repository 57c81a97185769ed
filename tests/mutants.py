"""Break the package in small ways, one at a time; the tests of the broken module must notice.

``python tests/mutants.py`` applies each mutation of ``mutants.toml`` to a copy of ``src/`` and runs
the module's tests against the copy until one fails. It prints the survivors and the score; below
95 % the exit code is 1. The module's tests must first pass on a copy without a mutation.
"""

import argparse
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "duality_ssl"
REQUIRED = 0.95
TIMEOUT = 120  # seconds for the tests of one mutant; a mutant that hangs counts as noticed

# plugins are not loaded, since pytest compiles their modules each time; `timeout` is an ini option
OPTIONS = ("-x", "-q", "-p", "no:cacheprovider", "-p", "pytest_timeout")

# imported once: each takes longer than the tests of most mutants
_PROCESSES = multiprocessing.get_context("forkserver")
_HEAVY = [
    *("hypothesis", "lightning.pytorch.cli", "numpy.testing", "pytest", "pytest_timeout"),
    *("sklearn.datasets", "sklearn.linear_model", "tensorboard", "timm", "torch", "torchmetrics"),
    *("torchmetrics.classification", "torchvision.transforms.v2", "yaml"),
]


class Mutant(NamedTuple):
    file: str
    original: str
    mutated: str
    tests: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.file}: {self.original!r} -> {self.mutated!r}"

    def applied(self) -> str:
        """The text of the file with the mutation; ``ValueError`` unless it has one place."""
        text = (PACKAGE / self.file).read_text(encoding="utf-8")
        if (count := text.count(self.original)) != 1:
            raise ValueError(
                f"Expected {self.original!r} once in src/duality_ssl/{self.file}, but it occurs "
                f"{count} times: change tests/mutants.toml."
            )
        return text.replace(self.original, self.mutated)


def listed() -> Iterator[Mutant]:
    """The mutants of ``mutants.toml``."""
    modules = tomllib.loads((ROOT / "tests" / "mutants.toml").read_text(encoding="utf-8"))
    for file, module in modules.items():
        for original, mutated in module["mutants"]:
            yield Mutant(file, original, mutated, tuple(module["tests"]))


def passes(tests: tuple[str, ...], mutant: Mutant | None = None) -> bool:
    """Whether tests pass on a copy of the package, whole or with a mutation."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "duality_ssl"
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        if mutant is not None:
            (copy / mutant.file).write_text(mutant.applied(), encoding="utf-8")
        process = _PROCESSES.Process(target=_run_tests, args=(folder, tests))
        process.start()
        process.join(TIMEOUT)
        passed = process.exitcode == 0
        with suppress(ProcessLookupError):  # tests have processes of their own
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
        return passed


def _run_tests(folder: str, tests: tuple[str, ...]) -> None:
    """Run tests in this process, against the package in a folder, and end it with their code."""
    os.setsid()
    os.chdir(ROOT / "tests")
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(silence, stream)
    os.environ |= {"PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"}
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    sys.dont_write_bytecode = True
    sys.path[:0] = [folder, str(ROOT / "tests")]
    import pytest

    os._exit(pytest.main([*OPTIONS, f"--basetemp={folder}/pytest", *tests]))


def main() -> None:
    """Try all mutants and report the survivors."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-j", type=int, default=os.cpu_count(), help="mutants at a time")
    parser.add_argument("--only", default="", help="files whose name has this in it")
    arguments = parser.parse_args()
    mutants = [mutant for mutant in listed() if arguments.only in mutant.file]
    for mutant in mutants:
        mutant.applied()
    os.environ["OMP_NUM_THREADS"] = "1"
    _PROCESSES.set_forkserver_preload(_HEAVY)
    with ThreadPoolExecutor(arguments.j) as pool:
        survivors, whole = [], dict.fromkeys(mutant.tests for mutant in mutants)
        tried = [(t, m) for t in whole for m in (None, *(m for m in mutants if m.tests == t))]
        results = pool.map(lambda pair: passes(*pair), tried)
        for (tests, mutant), passed in zip(tried, results, strict=True):
            if mutant is None and not passed:
                pool.shutdown(cancel_futures=True)
                parser.exit(2, f"Without a mutation these tests fail: {' '.join(tests)}\n")
            if mutant is not None:
                print(f"{'SURVIVED' if passed else 'killed  '}  {mutant.name}", flush=True)
                survivors += [mutant] if passed else []
    score = 1 - len(survivors) / max(1, len(mutants))
    print(f"{len(mutants) - len(survivors)} of {len(mutants)} mutants killed: {score:.1%}")
    for mutant in survivors:
        print(f"survived: {mutant.name}")
    sys.exit(score < REQUIRED)


if __name__ == "__main__":
    main()
