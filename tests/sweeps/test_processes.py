"""Sweeps with processes of their own: local ones, in a terminal, killed, and those of SLURM."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from helpers.sweep_command import command

from duality_ssl.cli import main
from duality_ssl.sweeps import read_rows, sweep

ROOT = Path(__file__).parents[2]
ROWS = Path("runs/sweeps/digits_smoke/rows.jsonl")
SMOKE = ["sweep", "configs/sweeps/digits_smoke.yaml"]
METHODS = {"VICReg": {"model": "VICReg"}}

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    path = [str(ROOT / "src"), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))


def start(*words: str, output: int = subprocess.PIPE) -> subprocess.Popen[str]:
    """Start the command in a session of its own, with this terminal if one is given."""
    return subprocess.Popen(
        [sys.executable, "-m", "duality_ssl", *words],
        **{"stdin": output, "stdout": output, "stderr": output, "text": True},
        preexec_fn=_own_terminal if output != subprocess.PIPE else None,
    )


def _own_terminal() -> None:
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_rows_are_those_of_the_commands() -> None:
    process = start(*SMOKE, "--jobs", "2")
    out, err = process.communicate(timeout=250)
    assert process.returncode == 0, out + err
    rows = read_rows(ROWS)
    assert len(out.splitlines()) == len(rows) == 4
    assert [row["parameters"] for row in rows] == [rows[0]["parameters"]] * 4
    last = next(row for row in rows if (row["cell"]["method"], row["seed"]) == ("VICReg", 1))
    (config,) = Path("runs/sweeps/digits_smoke").glob("VICReg*seed_1*/VICReg/version_0/config.yaml")
    words = ["-c", str(config), "--experiment", "alone", "--trainer.logger", "true"]
    main(["fit", *words])
    main(["test", "--ckpt_path", "runs/alone/VICReg/version_0"])
    path = Path("runs/alone/VICReg/version_0/checkpoints/evaluation.json")
    alone = json.loads(path.read_text())
    for name in ("linear_top1", "knn_top1", "few_label_top1"):
        assert last["scores"][name] == alone[name]


def test_ctrl_c_ends_the_runs_and_the_same_command_resumes() -> None:
    """In a terminal, which sends the signal to all processes, and shows the table."""
    content = yaml.safe_load((ROOT / "configs/sweeps/digits_smoke.yaml").read_text())
    content["options"]["trainer.max_epochs"] = 8
    Path("digits_smoke.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    words = ["sweep", "digits_smoke.yaml", "--only", "method=VICReg", "--jobs", "2"]
    ours, theirs = pty.openpty()
    process = start(*words, output=theirs)
    os.close(theirs)
    shown = ""
    while "epoch 2/8" not in shown:
        shown += os.read(ours, 4096).decode()
    os.write(ours, b"\x03")
    with suppress(OSError):  # how a terminal ends
        while text := os.read(ours, 4096):
            shown += text.decode()
    assert process.wait() == 130
    assert "running  VICReg, d 16, seed 0" in shown
    assert "Interrupted. The same command resumes." in shown
    assert not ROWS.exists()
    left = subprocess.run(["pgrep", "-f", str(Path.cwd())], capture_output=True, text=True)
    assert not left.stdout
    again = start(*words)
    out, err = again.communicate(timeout=250)
    assert again.returncode == 0, out + err
    logs = [path.read_text() for path in Path("runs/sweeps/digits_smoke/logs").glob("*.log")]
    assert all("Resume " in log for log in logs)
    assert [row["epochs"] for row in read_rows(ROWS)] == [8, 8]


def test_a_process_that_is_killed_leaves_the_rest() -> None:
    axes = {"method": METHODS, "model.base_lr": [9, 1, 2, 3]}
    Path("digits_smoke.yaml").write_text(yaml.safe_dump({"axes": axes}))
    with pytest.raises(SystemExit):
        sweep(Path("digits_smoke.yaml"), command=command)
    killed, *others = read_rows(ROWS)
    assert killed["error"].startswith("its process ended without a word")
    assert all("scores" in row for row in others)
    assert len(others) == 3


SBATCH = """#!/bin/sh
log=$PWD/slurm.out
SLURM_JOB_ID=12 SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 sh "$1" > "$log" 2>&1 &
echo Submitted batch job 12
"""
SRUN = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do
  case "$1" in --output|--error) shift 2 ;; *) shift ;; esac
done
SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0 exec "$@"
"""
SACCT = """#!/bin/sh
echo 'JobID|State|NodeList'
echo '12|RUNNING|here'
"""


def test_slurm_does_the_same_file(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("sacct", SACCT)):
        Path(name).write_text(text)
        Path(name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{Path.cwd()}:{os.environ['PATH']}")
    content = {"axes": {"method": METHODS}, "slurm": {"partition": "gpu", "timeout_min": 60}}
    Path("digits_smoke.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    sweep(Path("digits_smoke.yaml"), command=command)
    (row,) = read_rows(ROWS)
    assert row["scores"]["few_label_top1"] == 0.5


def test_a_sweep_that_is_terminated_ends_its_runs() -> None:
    axes = {"method": METHODS}
    options = {"trainer.max_epochs": 500, "model.projector": "16-16"}
    content = {"configs": ["configs/data/digits.yaml"], "options": options, "axes": axes}
    Path("digits_smoke.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    process = start("sweep", "digits_smoke.yaml")
    logs = Path("runs/sweeps/digits_smoke/logs")
    while not any("epoch 2/" in log.read_text() for log in logs.glob("*.log")):
        assert process.poll() is None
        time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out.endswith("Interrupted. The same command resumes.\n")
    (log,) = logs.glob("*.log")
    assert "SIGTERM: stopped at step" in log.read_text()
