"""Checkpoints under faults: full disks, folders without access, kills in the middle of a write."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.callback_stubs import StubData, StubModule, trainer

from duality_ssl.callbacks import LastCheckpoint
from duality_ssl.files import remove_temporary, write_atomically
from duality_ssl.runs.checkpoint_io import AtomicCheckpointIO
from duality_ssl.runs.folder import newest_checkpoint, read_checkpoint

DIGITS = str(Path(__file__).parents[2] / "configs/data/digits.yaml")
FIT = [
    *("fit", "-c", DIGITS, "--model", "VICReg", "--data.subset", "128", "--data.batch_size", "64"),
    *("--model.projector", "32-32", "--model.warmup_epochs", "0", "--trainer.max_epochs", "3"),
    *("--trainer.enable_progress_bar", "false", "--trainer.limit_val_batches", "1"),
    *("--without", "[probe, knn, rankme, duality, guard, views, best_checkpoint]"),
]
RUN = Path("runs/digits/VICReg/version_0")


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run_script(code: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run code before the command line, in a process of its own; its launcher runs it again."""
    script = folder / "faulty.py"
    end = "\nimport sys\nfrom duality_ssl.cli import main\nmain(sys.argv[1:])\n"
    script.write_text(textwrap.dedent(code) + end)
    return subprocess.run(
        [sys.executable, str(script), *FIT, *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_content_is_on_the_disk_before_its_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, order = tmp_path / "file", []
    fsync, replace = os.fsync, Path.replace

    def spy_fsync(handle: int) -> None:
        synced = Path(f"/proc/self/fd/{handle}").readlink()
        order.append(("folder" if synced == tmp_path else "file", synced.stat().st_size))
        fsync(handle)

    def spy_replace(self: Path, target: Path) -> Path:
        order.append(("name", self.stat().st_size))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(Path, "replace", spy_replace)
    write_atomically(path, lambda file: file.write(b"content"))
    assert [what for what, _ in order] == ["file", "name", "folder"]
    assert [size for what, size in order if what != "folder"] == [7, 7]


def test_left_overs_are_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".last.ckpt.x1y2.tmp", ".config.yaml.abcd.tmp", "mine.tmp", ".hidden"):
        (tmp_path / name).touch()
    remove_temporary(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"mine.tmp", ".hidden"}


def fail(code: int) -> Callable[..., None]:
    def raise_it(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    return raise_it


FAULTS = {
    "full disk": ((os, "fsync"), errno.ENOSPC, "No space left on device. Check the disk"),
    "quota": ((os, "fsync"), errno.EDQUOT, "quota exceeded. Check the disk"),
    "read-only disk": ((Path, "open"), errno.EROFS, "Read-only file system"),
    "no access": ((Path, "open"), errno.EACCES, "denied. Check the disk"),
    "broken disk": ((os, "fsync"), errno.EIO, "Input/output error. Check"),
    "no rename": ((Path, "replace"), errno.EPERM, "Operation not permitted"),
    "no handle": ((Path, "open"), errno.EMFILE, "Too many open files"),
}


@pytest.mark.parametrize(("place", "code", "said"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_said_once_and_keeps_the_old_checkpoint(
    place: tuple[Any, str],
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plugin, path = AtomicCheckpointIO(), tmp_path / "checkpoints/last.ckpt"
    plugin.save_checkpoint({"step": 1}, path)
    before = content(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(*place, fail(code))
        with pytest.warns(UserWarning, match=f"No checkpoint can be written to .*{said}") as all_of:
            plugin.save_checkpoint({"step": 2}, path)
        assert len(all_of) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            plugin.save_checkpoint({"step": 3}, path)
    assert plugin.failed
    assert content(tmp_path) == before
    plugin.save_checkpoint({"step": 4}, path)
    assert not plugin.failed
    assert torch.load(path, weights_only=True) == {"step": 4}
    assert [*tmp_path.rglob("*")] == [path.parent, path]


def test_a_file_in_the_place_of_the_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("not a folder")
    with pytest.warns(UserWarning, match="File exists"):
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "checkpoints/last.ckpt")


def test_what_no_disk_is_to_blame_for_is_raised(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="pickle"):
        AtomicCheckpointIO().save_checkpoint({"f": lambda: 0}, tmp_path / "last.ckpt")
    assert not [*tmp_path.iterdir()]


# RLIMIT_FSIZE lets no file grow beyond a size: a write in the middle of torch.save fails, for real
FULL = """
    import resource, signal
    from duality_ssl import JointEmbedding

    def limit(self):
        full = self.current_epoch in {epochs}
        size = 200_000 if full else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    JointEmbedding.on_train_epoch_end = limit
"""


@pytest.mark.slow
@pytest.mark.parametrize("for_good", [True, False], ids=["to the end", "for an epoch"])
def test_a_fit_trains_on_when_the_disk_is_full(for_good: bool, tmp_path: Path) -> None:
    # epoch 0 ends with a checkpoint at the start of epoch 1, and so on; the last at the end
    done = run_script(FULL.format(epochs="{1, 2}" if for_good else "{1}"), tmp_path)
    assert done.returncode == (1 if for_good else 0), done.stderr[-2000:]
    assert done.stderr.count("No checkpoint can be written to") == 1
    assert "File too large. Check the disk and who may write to it. Training continues" in (
        " ".join(done.stderr.split())
    )
    last = read_checkpoint(tmp_path / RUN / "checkpoints/last.ckpt")
    assert last.epochs == (1 if for_good else 3)
    said = "error: The fit has ended, but its last checkpoint could not be written."
    assert (said in done.stderr) == for_good
    assert not [*tmp_path.rglob(".*.tmp")]


def kill_at(fault: str, patch: pytest.MonkeyPatch) -> None:
    """Have this process die within the next write."""
    save, replace = torch.save, Path.replace

    def die(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def save_half(checkpoint: Any, file: Any) -> None:
        save(checkpoint, file)
        file.truncate(file.tell() // 2)
        die()

    def name_and_die(self: Path, target: Path) -> None:
        replace(self, target)
        die()

    places: dict[str, tuple[Any, str, Any]] = {
        "half written": (torch, "save", save_half),
        "not on the disk": (os, "fsync", die),
        "without a name": (Path, "replace", die),
        "named": (Path, "replace", name_and_die),
    }
    patch.setattr(*places[fault])


KILLS = {
    **dict.fromkeys(("half written", "not on the disk", "without a name"), 1),
    "named": 2,
}


@pytest.mark.parametrize(("fault", "epochs"), KILLS.items(), ids=KILLS)
def test_a_kill_within_a_write_leaves_a_checkpoint(
    fault: str, epochs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forked process dies in its second write; the checkpoint that it leaves can be resumed."""

    def fit(module: StubModule, **kwargs: Any) -> None:
        last, plugin = LastCheckpoint(), AtomicCheckpointIO()
        run = trainer(tmp_path, last, epochs=3, enable_checkpointing=True, plugins=[plugin])
        run.fit(module, datamodule=StubData(), weights_only=True, **kwargs)

    class Armed(StubModule):
        def on_train_epoch_end(self) -> None:
            if self.current_epoch == 1:
                kill_at(fault, monkeypatch)

    child = os.fork()
    if child == 0:
        try:
            fit(Armed())
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.epochs == epochs
    fit(StubModule(), ckpt_path=newest.path)
    remove_temporary(tmp_path / "checkpoints")
    assert {path.name for path in tmp_path.rglob("*.*")} == {"last.ckpt", "previous.ckpt"}
    assert read_checkpoint(tmp_path / "checkpoints/last.ckpt").epochs == 3


NO_SPACE = """
    import errno, os
    import torch
    from duality_ssl import JointEmbedding

    save = torch.save

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill(self):
        torch.save = full if self.current_epoch == 1 else save

    JointEmbedding.on_train_epoch_end = fill
"""


@pytest.mark.slow
def test_two_processes_train_on_when_the_disk_is_full(tmp_path: Path) -> None:
    two = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    done = run_script(NO_SPACE, tmp_path, *two, "--data.batch_size", "32")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.count("No checkpoint can be written to") == 1
    assert "No space left on device" in done.stderr
    assert read_checkpoint(tmp_path / RUN / "checkpoints/last.ckpt").epochs == 3
