"""Real processes: how they are started, what they leave, and how they end when one is lost."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
import torch
import yaml

from duality_ssl.cli import main
from duality_ssl.methods.strategy import end_together

ROOT = Path(__file__).parents[2]
HERE = ["--trainer.accelerator", "cpu"]
TWO_DEVICES = [*HERE, "--trainer.devices", "2"]
TWO_NODES = [*HERE, "--trainer.num_nodes", "2", "--trainer.devices", "1"]
FIT = [
    *("fit", "-c", str(ROOT / "configs/data/digits.yaml")),
    *("-c", str(ROOT / "configs/hardware/ddp.yaml"), "--model", "VICReg"),
    *("--model.projector", "32-32", "--model.warmup_epochs", "0", "--data.batch_size", "32"),
    *("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "4"),
    *("--trainer.limit_val_batches", "2"),
]
KEEP = ["--trainer.callbacks+", "helpers.launch_callbacks.KeepWeights"]
PATIENCE = 240  # seconds until a test gives up


class Job:
    """Processes that know each other by a mark in their environment, and so do their children."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.mark = folder, f"MARK={uuid4()}"
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, *words: str, **environment: str) -> None:
        name, value = self.mark.split("=")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PL_", "SLURM_"))}
        with (self.folder / f"said-{len(self.started)}.txt").open("wb") as said:
            self.started.append(
                subprocess.Popen(
                    [sys.executable, "-m", *words],
                    cwd=self.folder,
                    env={
                        **inherited,
                        **{"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "tests")},
                        **environment,
                        name: value,
                    },
                    stdout=said,
                    stderr=subprocess.STDOUT,
                )
            )

    def codes(self) -> list[int]:
        """Wait for those that were started; their exit codes."""
        return [process.wait(PATIENCE) for process in self.started]

    def said(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("said-*.txt")))

    def alive(self) -> list[int]:
        """All processes with the mark; one that has ended has no environment."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                marked = self.mark.encode() in path.read_bytes().split(b"\0")
            except OSError:  # ended meanwhile
                continue
            found += [int(path.parent.name)] * marked
        return found

    def all_end(self, seconds: float = 20) -> bool:
        """Whether none of the processes is there any more, now or soon."""
        give_up = time.monotonic() + seconds
        while (alive := self.alive()) and time.monotonic() < give_up:
            time.sleep(0.1)
        return not alive


@contextmanager
def job(folder: Path) -> Iterator[Job]:
    new = Job(folder)
    try:
        yield new
    finally:
        for pid in new.alive():
            os.kill(pid, signal.SIGKILL)
        for process in new.started:
            process.wait(PATIENCE)


def free_port(first: int, last: int) -> int:
    for port in range(first + os.getpid() % 1000, last):
        with closing(socket.socket()) as tried:
            if tried.connect_ex(("127.0.0.1", port)):
                return port
    raise OSError(f"No port is free in {first} ... {last}.")


def by_lightning(new: Job, *words: str) -> None:
    new.start("duality_ssl", *FIT, *TWO_DEVICES, *words)


def by_torchrun(new: Job, *words: str) -> None:
    """Two agents, as on two machines."""
    meet = ["--master_addr", "127.0.0.1", "--master_port", str(free_port(29500, 31000))]
    for node in range(2):
        agent = ["--nnodes", "2", "--nproc_per_node", "1", "--node_rank", str(node), *meet]
        worker = ["-m", "duality_ssl", *FIT, *TWO_NODES, *words]
        new.start("torch.distributed.run", *agent, *worker)


def by_srun(new: Job, *words: str) -> None:
    """The environment that srun makes for two machines, whose port follows from the job's id."""
    port = free_port(15000, 25000)
    shared = {"SLURM_JOB_ID": f"7{port - 15000:04}", "SLURM_JOB_NAME": "duality-ssl"}
    shared |= {"SLURM_NNODES": "2", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1"}
    shared |= dict.fromkeys(("SLURM_NODELIST", "SLURM_JOB_NODELIST"), "localhost,node[2-3]")
    for task in map(str, range(2)):
        own = {"SLURM_PROCID": task, "SLURM_NODEID": task, "SLURM_LOCALID": "0"}
        new.start("duality_ssl", *FIT, *TWO_NODES, *words, **shared, **own)


LAUNCHERS: dict[str, Callable[..., None]] = {
    "lightning": by_lightning,
    "torchrun": by_torchrun,
    "srun": by_srun,
}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Job]:
    """A fit by a launcher, which has ended; each is run once."""
    done: dict[str, Job] = {}

    def fit(launcher: str) -> Job:
        if launcher not in done:
            with job(tmp_path_factory.mktemp(launcher)) as new:
                LAUNCHERS[launcher](new, *KEEP)
                assert set(new.codes()) == {0}, new.said()
                assert new.all_end()
            done[launcher] = new
        return done[launcher]

    return fit


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_fit_leaves_one_run(fitted: Callable[[str], Job], launcher: str) -> None:
    folder = fitted(launcher).folder
    (run,) = (folder / "runs/digits/VICReg").iterdir()
    assert run.name == "version_0"
    assert [path.parent for path in folder.rglob("config.yaml")] == [run]
    assert (run / "checkpoints/last.ckpt").is_file()
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["trainer"]["strategy"]["init_args"]["timeout"] == "0:10:00"
    steps = [row.split(",") for row in (run / "metrics.csv").read_text().splitlines()]
    assert len({tuple(row) for row in steps}) == len(steps)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_nothing_is_said_twice(fitted: Callable[[str], Job], launcher: str) -> None:
    said = fitted(launcher).said()
    assert "base_lr 0.002 x global batch 64 / 256" in said
    lines = Counter(line for line in said.splitlines() if re.search(r"\w", line))
    assert [line for line, count in lines.items() if count > 1] == []


@pytest.mark.slow
def test_all_processes_of_all_launchers_have_the_same_weights(
    fitted: Callable[[str], Job],
) -> None:
    kept: list[dict[str, Any]] = [
        torch.load(fitted(launcher).folder / f"rank-{rank}.pt", weights_only=True)
        for launcher in LAUNCHERS
        for rank in range(2)
    ]
    first = kept[0]["weights"]
    for other in kept[1:]:
        assert all(torch.equal(value, first[name]) for name, value in other["weights"].items())
    assert {Path(one["folder"]).name for one in kept} == {"version_0"}


def test_sbatch_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The script, with a srun that writes its words to a file, as the command line parses them."""
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > words.txt\n')
    srun.chmod(0o755)
    script = ROOT / "configs/hardware/slurm.sh"
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    environment |= {"SLURM_NNODES": "4", "SLURM_NTASKS_PER_NODE": "2"}
    given = ["--data.root", "some where"]
    subprocess.run(["bash", "-n", script], check=True)
    subprocess.run(["bash", script, *given], cwd=tmp_path, env=environment, check=True)
    words = (tmp_path / "words.txt").read_text().splitlines()
    launched = words.index("duality-ssl")
    assert words[:launched] == ["--kill-on-bad-exit=1"]
    assert words[words.index("--ckpt_path") + 1] == "last"
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as done:
        main([*words[launched + 1 :], "--print_config"])
    assert done.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert [int(config["trainer"][name]) for name in ("num_nodes", "devices")] == [4, 2]
    assert config["data"]["root"] == "some where"
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", script.read_text(), re.MULTILINE))
    assert options["signal"] == "SIGUSR1@90"
    assert options.keys() >= {"requeue", "open-mode", "nodes", "ntasks-per-node"}


def strike(rank: int, name: str) -> list[str]:
    """Options that have a process lose itself in its third step."""
    callback = ["--trainer.callbacks+", "helpers.launch_callbacks.Strike"]
    return [*callback, "--trainer.callbacks.rank", str(rank), "--trainer.callbacks.name", name]


# a hang is waited for: no less than what the processes need to start
TIMEOUT = ["--trainer.strategy.init_args.timeout", "0:00:30"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "rank", "name", "codes"),
    [
        # process 0 hangs or is killed by Lightning, which looks after its processes every 5 seconds
        pytest.param("lightning", 0, "hang", {-9}, id="the first process hangs"),
        pytest.param("lightning", 1, "hang", {1, -9}, id="a process hangs"),
        pytest.param("lightning", 1, "SIGSTOP", {1, -9}, id="a process is frozen"),
    ],
)
def test_a_lost_process_ends_all(
    launcher: str, rank: int, name: str, codes: set[int], tmp_path: Path
) -> None:
    with job(tmp_path) as new:
        LAUNCHERS[launcher](new, *strike(rank, name), *TIMEOUT)
        assert set(new.codes()) <= codes, new.said()
        assert new.all_end(), new.said()


@pytest.mark.slow
def test_a_fit_that_lost_a_process_resumes_as_if_it_had_not(
    fitted: Callable[[str], Job], tmp_path: Path
) -> None:
    with job(tmp_path) as lost:
        by_lightning(lost, *strike(1, "SIGKILL"), "--last_checkpoint.every_n_steps", "1")
        assert set(lost.codes()) <= {1, -9}
        assert lost.all_end(), lost.said()
    with job(tmp_path) as new:
        by_lightning(new, "--ckpt_path", "last", KEEP[0].removesuffix("+"), KEEP[1])
        assert new.codes() == [0], new.said()
    expected = fitted("lightning").folder
    run = "runs/digits/VICReg/version_0"
    assert [path.name for path in (tmp_path / run).parent.iterdir()] == ["version_0"]
    for rank in range(2):
        one, other = (
            torch.load(folder / f"rank-{rank}.pt", weights_only=True)["weights"]
            for folder in (tmp_path, expected)
        )
        assert all(torch.equal(value, other[name]) for name, value in one.items())
    ours, theirs = ((folder / run / "metrics.csv").read_text() for folder in (tmp_path, expected))
    assert ours == theirs


class Launcher:
    """Notes the signals that the processes which it started get."""

    def __init__(self) -> None:
        self.sent: list[int] = []

    def kill(self, number: int) -> None:
        self.sent.append(number)


@pytest.mark.parametrize(
    ("error", "killed", "noted"),
    [
        (RuntimeError("Connection closed by peer"), [signal.SIGKILL], True),
        (ValueError("a mistake"), [signal.SIGKILL], False),
        (SystemExit(75), [], False),
    ],
    ids=["another process is lost", "an error", "a preempted run"],
)
def test_what_fails_ends_the_processes_that_it_started(
    error: BaseException, killed: list[int], noted: bool
) -> None:
    trainer: Any = SimpleNamespace(
        world_size=2, strategy=SimpleNamespace(launcher=(launcher := Launcher()))
    )
    with pytest.raises(type(error)) as raised, end_together(trainer):
        raise error
    assert raised.value is error
    assert launcher.sent == killed
    notes = "".join(getattr(error, "__notes__", []))
    assert ("resume with --ckpt_path last" in notes) == noted


def test_one_process_ends_none() -> None:
    trainer: Any = SimpleNamespace(world_size=1, strategy=SimpleNamespace(launcher=None))
    with pytest.raises(RuntimeError) as raised, end_together(trainer):
        raise RuntimeError
    assert not hasattr(raised.value, "__notes__")
