"""The suite notices unexpected warnings and skipped tests; standing processes survive an error."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import conftest
import pytest
import torch
from helpers.gloo_processes import Processes

from duality_ssl import distributed
from duality_ssl.evaluation import evaluate
from duality_ssl.runs.folder import newest_checkpoint

pytest_plugins = ["pytester"]


def pass_over() -> None:
    """Warns of the package's own line."""
    Path("checkpoints").mkdir()
    Path("checkpoints/last.ckpt").touch()
    newest_checkpoint(Path())


def evaluate_unlabelled() -> None:
    """Warns of its caller's line."""
    features, labels = torch.randn(4, 3), torch.full((4,), -1)
    evaluate(features, labels, features, labels)


WARNINGS = {"is skipped": pass_over, "only label-free measures are computed": evaluate_unlabelled}


@pytest.mark.parametrize(("said", "warn"), WARNINGS.items(), ids=WARNINGS)
@pytest.mark.parametrize("expecting", [nullcontext(), pytest.warns(UserWarning, match="another")])
def test_unexpected_warning_of_the_package_is_an_error(
    expecting: AbstractContextManager[object],
    said: str,
    warn: Callable[[], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserWarning, match=said), expecting:
        warn()


@pytest.mark.parametrize(("in_ci", "code"), [(True, 1), (False, 0)])
def test_skipped_test_fails_the_suite_in_ci(
    in_ci: bool, code: int, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DUALITY_SSL_NO_SKIPS", raising=False)
    if in_ci:
        monkeypatch.setenv("DUALITY_SSL_NO_SKIPS", "1")
    pytester.makepyfile("import pytest\ndef test_one(): pytest.skip()\ndef test_two(): pass")
    assert pytester.runpytest_inprocess(plugins=[conftest]).ret == code


def _fail_on_the_second() -> int:
    if distributed.rank() == 1:
        raise ArithmeticError("on one process alone")
    return distributed.world_size()


def test_processes_start_again_after_an_error(tmp_path: Path) -> None:
    group = Processes(2, tmp_path)
    with pytest.raises(ArithmeticError, match="on one process alone"):
        group.run(_fail_on_the_second)
    assert group.run(distributed.world_size) == [2, 2]
    group.end()
