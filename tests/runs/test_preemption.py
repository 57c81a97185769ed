"""SIGTERM and SIGUSR1 at any moment of a fit: a checkpoint, exit code 75, and the same result."""

import csv
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from helpers.callback_stubs import trainer
from lightning.pytorch.plugins.environments import SLURMEnvironment

from duality_ssl import JointEmbedding, VICReg
from duality_ssl.callbacks import LastCheckpoint, OnlineLinearProbe, Preemption, StepSeed
from duality_ssl.cli import main
from duality_ssl.data import SSLDataModule
from duality_ssl.runs.folder import Checkpoint, newest_checkpoint, read_checkpoint
from duality_ssl.runs.loggers import RunCSVLogger

RUN = Path("runs/version_0")


def fit(**settings: Any) -> None:
    """Resume the run of this folder from its newest checkpoint, or start it: 2 x 4 batches."""
    lightning.seed_everything(0, verbose=False)
    module = VICReg(backbone="resnet_tiny", projector="16-16", in_channels=1, warmup_epochs=0.5)
    data = SSLDataModule("digits", batch_size=16, image_size=8, subset=64, seed=3)
    logger = RunCSVLogger(RUN)
    callbacks = OnlineLinearProbe(), Preemption(), LastCheckpoint(), StepSeed()
    defaults = {"enable_checkpointing": True, "num_sanity_val_steps": 0, "log_every_n_steps": 1}
    defaults |= {"limit_val_batches": 1, "logger": [logger]}
    run = trainer(Path(), *callbacks, **(defaults | settings))
    checkpoint = newest_checkpoint(RUN)
    path = None if checkpoint is None else checkpoint.path
    run.fit(module, datamodule=data, ckpt_path=path, weights_only=True)


def fit_stopped(**settings: Any) -> Checkpoint | None:
    """Run a fit that gets a signal; return the checkpoint that it has left."""
    with pytest.raises(SystemExit) as done:
        fit(**settings)
    assert done.value.code == 75
    return newest_checkpoint(RUN)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fit()
    return folder / RUN


@pytest.fixture(autouse=True)
def _handlers_are_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    yield
    after = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    assert after == before


def signal_in(
    patch: pytest.MonkeyPatch, hook: str, epoch: int, batch: int | None, *numbers: signal.Signals
) -> None:
    """Have the process get signals in a hook of the method, of this batch if it has one."""
    former = getattr(JointEmbedding, hook)

    def hooked(self: JointEmbedding, *args: Any, **kwargs: Any) -> Any:
        if self.current_epoch == epoch and (batch is None or args[1] == batch):
            for number in numbers:
                os.kill(os.getpid(), number)
        return former(self, *args, **kwargs)

    patch.setattr(JointEmbedding, hook, hooked)


def assert_same_end(run: Path, other: Path) -> None:
    """Compare weights, optimizer and logged metrics bit by bit."""
    ours, theirs = (
        torch.load(folder / "checkpoints/last.ckpt", weights_only=True) for folder in (run, other)
    )
    assert ours["global_step"] == theirs["global_step"]
    assert ours["state_dict"].keys() == theirs["state_dict"].keys()
    for key, tensor in theirs["state_dict"].items():
        assert torch.equal(ours["state_dict"][key], tensor), key
    torch.testing.assert_close(ours["optimizer_states"], theirs["optimizer_states"], rtol=0, atol=0)
    ours, theirs = (rows(folder / "metrics.csv") for folder in (run, other))
    assert ours == theirs


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return [*csv.DictReader(file)]


MOMENTS = {
    "first step": ("training_step", 0, 0, 1),
    "within an epoch": ("training_step", 1, 1, 6),
    "last step of an epoch": ("training_step", 0, 3, 4),
    "validation": ("validation_step", 0, 0, 4),
}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda n: n.name)
@pytest.mark.parametrize(("hook", "epoch", "batch", "step"), MOMENTS.values(), ids=MOMENTS)
def test_a_signal_keeps_the_state_and_the_fit_resumes(
    hook: str,
    epoch: int,
    batch: int,
    step: int,
    number: signal.Signals,
    whole: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.MonkeyPatch.context() as patch, caplog.at_level("INFO"):
        signal_in(patch, hook, epoch, batch, number)
        stopped = fit_stopped()
    assert stopped is not None
    assert stopped.step == step
    assert f"{number.name}: stopped at step {step} with exit code 75" in caplog.text
    fit()
    assert_same_end(RUN, whole)


def test_a_signal_in_the_last_step_lets_the_run_end(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal_in(monkeypatch, "training_step", 1, 3, signal.SIGTERM)
    fit()
    assert_same_end(RUN, whole)


@pytest.mark.parametrize("hook", ["setup", "on_fit_start", "validation_step"])
def test_a_signal_before_training_ends_at_once(hook: str, monkeypatch: pytest.MonkeyPatch) -> None:
    signal_in(monkeypatch, hook, 0, None, signal.SIGTERM)  # a validation of the sanity check
    assert fit_stopped(num_sanity_val_steps=1) is None


def test_two_signals_at_once_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    signal_in(monkeypatch, "training_step", 0, 1, signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM)
    stopped = fit_stopped()
    assert stopped is not None
    assert stopped.step == 2


def test_accumulated_batches_are_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    signal_in(monkeypatch, "training_step", 0, 2, signal.SIGTERM)
    stopped = fit_stopped(accumulate_grad_batches=2)
    assert stopped is not None
    assert (stopped.step, stopped.epochs) == (2, 1)


@pytest.mark.parametrize(
    ("number", "requeue"),
    [(signal.SIGUSR1, True), (signal.SIGUSR1, False), (signal.SIGTERM, True)],
    ids=["requeued", "left to the user", "another signal"],
)
def test_slurm_requeues_on_its_signal_only(
    number: signal.Signals, requeue: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scontrol = tmp_path / "bin/scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\nls {RUN}/checkpoints > seen\necho "$@" > asked\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    tasks = {"NTASKS": 1, "NTASKS_PER_NODE": 1, "PROCID": 0, "LOCALID": 0, "NODEID": 0}
    for name, value in {**tasks, "JOB_ID": 4321, "JOB_NAME": "pretrain"}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    signal_in(monkeypatch, "training_step", 0, 1, number)
    off = {} if requeue else {"plugins": [SLURMEnvironment(auto_requeue=False)]}
    stopped = fit_stopped(**off)
    assert stopped is not None
    assert stopped.step == 2
    if requeue and number == signal.SIGUSR1:
        assert Path("asked").read_text() == "requeue 4321\n"
        assert "last.ckpt" in Path("seen").read_text()  # after the checkpoint
    else:
        assert not Path("asked").exists()
    assert not [*tmp_path.rglob("hpc_ckpt*")]


def test_cadence_is_checked() -> None:
    with pytest.raises(ValueError, match="`every_n_steps` of at least 1, but got 0"):
        Preemption(every_n_steps=0)


DIGITS = str(Path(__file__).parents[2] / "configs/data/digits.yaml")
# 4 batches an epoch
COMMAND = [
    *("fit", "-c", DIGITS, "--model", "VICReg", "--data.subset", "256", "--data.batch_size", "64"),
    *("--model.projector", "32-32", "--model.warmup_epochs", "0", "--trainer.max_epochs", "2"),
    *("--trainer.enable_progress_bar", "false", "--trainer.limit_val_batches", "1"),
    *("--without", "[knn, rankme, duality, guard, views]", "--ckpt_path", "last"),
]
TWO = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
COMMAND_RUN = Path("runs/digits/VICReg/version_0")


def test_the_same_command_resumes(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        signal_in(patch, "training_step", 0, 1, signal.SIGTERM)
        with pytest.raises(SystemExit) as done:
            main(COMMAND)
    assert done.value.code == 75
    assert "SIGTERM: finishing the step" in capfd.readouterr().err
    main(COMMAND)
    (run,) = COMMAND_RUN.parent.iterdir()
    assert read_checkpoint(run / "checkpoints/last.ckpt").epochs == 2


SIGNALS = """
    import os, signal, time
    from pathlib import Path
    from duality_ssl import JointEmbedding

    step = JointEmbedding.training_step
    rank = int(os.environ.get("LOCAL_RANK", 0))

    def training_step(self, batch, batch_idx):
        if (self.current_epoch, batch_idx) == (0, 1):
            {what}
        return step(self, batch, batch_idx)

    def kill(*ranks):
        if rank in ranks:
            os.kill(os.getpid(), signal.SIGTERM)

    JointEmbedding.training_step = training_step
"""


def start(
    what: str, folder: Path, *words: str, launcher: Sequence[str] = ()
) -> subprocess.Popen[str]:
    """Start the command line in a process group of its own, with something happening in a step."""
    end = "\nimport sys\nfrom duality_ssl.cli import main\nmain(sys.argv[1:])\n"
    (folder / "script.py").write_text(textwrap.dedent(SIGNALS.format(what=what)) + end)
    return subprocess.Popen(
        [sys.executable, *launcher, "script.py", *COMMAND, *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for the end of the process, or kill its whole group."""
    try:
        _, said = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, said


@pytest.mark.slow
def test_another_signal_ends_at_once(tmp_path: Path) -> None:
    code, said = finish(start("kill(0); time.sleep(1.2); kill(0); time.sleep(60)", tmp_path))
    assert code == -signal.SIGTERM, said[-2000:]
    assert "SIGTERM: finishing the step and writing a checkpoint" in said
    assert newest_checkpoint(tmp_path / COMMAND_RUN) is None


WAIT = "Path('ready').touch(); time.sleep(2)"


def terminate_all(process: subprocess.Popen[str], folder: Path) -> None:
    """Send SIGTERM to every process of a job that waits."""
    deadline = time.monotonic() + 100
    while not (folder / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)


@pytest.mark.slow
def test_workers_outlive_the_signal_that_all_processes_get(tmp_path: Path) -> None:
    process = start(WAIT, tmp_path, "--data.num_workers", "2")
    terminate_all(process, tmp_path)
    code, said = finish(process)
    assert code == 75, said[-2000:]
    last = read_checkpoint(tmp_path / COMMAND_RUN / "checkpoints/last.ckpt")
    assert last.step == 2


@pytest.mark.slow
def test_torchrun_passes_the_signal_on_that_all_have_got(tmp_path: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words = [*TWO, "--data.batch_size", "32", "--preemption.every_n_steps", "3"]
    process = start(WAIT, tmp_path, *words, launcher=launcher)
    terminate_all(process, tmp_path)
    code, said = finish(process)
    assert code == 1, said[-2000:]
    assert said.count("SIGTERM: stopped at step 3 with exit code 75") == 1
    assert read_checkpoint(tmp_path / COMMAND_RUN / "checkpoints/last.ckpt").step == 3


@pytest.mark.slow
@pytest.mark.parametrize("ranks", ["0", "1", "0, 1"], ids=["first", "second", "both"])
def test_processes_stop_at_the_same_step(ranks: str, tmp_path: Path) -> None:
    words = [*TWO, "--data.batch_size", "32", "--preemption.every_n_steps", "3"]
    code, said = finish(start(f"kill({ranks})", tmp_path, *words))
    assert code == 75, said[-2000:]
    assert said.count("SIGTERM: stopped at step 3 with exit code 75") == 1
    last = read_checkpoint(tmp_path / COMMAND_RUN / "checkpoints/last.ckpt")
    assert last.step == 3
    if ranks == "0, 1":
        code, said = finish(start("pass", tmp_path, *words))
        assert code == 0, said[-2000:]
        assert read_checkpoint(last.path).epochs == 2
