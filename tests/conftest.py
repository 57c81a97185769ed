import atexit
import gc
import os
from collections.abc import Callable, Iterator

import pytest
import torch
from helpers.gloo_processes import Processes
from torch import Tensor


@pytest.fixture(scope="session", autouse=True)
def _one_thread_a_worker() -> None:
    """Several workers share few cores; a second thread each would only make them wait."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True)
def _seed_of_no_other_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A run seeds its process through the environment; the next test must not inherit that."""
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    monkeypatch.delenv("PL_SEED_WORKERS", raising=False)
    yield
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        os.environ.pop(name, None)


@pytest.fixture(scope="session")
def gloo_processes(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[int], Processes]]:
    """Process groups by their world size; each is started once and stays for the session."""
    groups: dict[int, Processes] = {}
    folder = tmp_path_factory.mktemp("gloo")
    yield lambda world: groups.setdefault(world, Processes(world, folder))
    for group in groups.values():
        group.end()


@pytest.fixture
def small() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Three classes in five dimensions, 60 samples to train on and 30 to validate."""
    generator = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn(3, 5, generator=generator)
    y, y_val = torch.arange(60) % 3, torch.arange(30) % 3
    train = centres[y] + torch.randn(60, 5, generator=generator)
    return train, y, centres[y_val] + torch.randn(30, 5, generator=generator), y_val


def pytest_collection_finish() -> None:
    """Leave modules and collected tests out of garbage collections: each takes 0.3 s with them."""
    gc.freeze()
    atexit.register(gc.unfreeze)  # nanobind prints what is not collected at exit


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With ``DUALITY_SSL_NO_SKIPS``, which CI sets, the suite fails if a test is skipped."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")  # none in a worker
    if "DUALITY_SSL_NO_SKIPS" in os.environ and reporter and reporter.stats.get("skipped"):
        reporter.ensure_newline()
        reporter.write_sep("!", "Expected no skipped test")  # the summary names them
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def pretend_processes(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Make the data believe that it is in process ``rank`` of ``world``."""

    def pretend(rank: int, world: int) -> None:
        monkeypatch.setattr("duality_ssl.data.sampler.rank", lambda: rank)
        monkeypatch.setattr("duality_ssl.data.sampler.world_size", lambda: world)
        monkeypatch.setattr("duality_ssl.data.datamodule.world_size", lambda: world)

    return pretend
