"""Folders of runs: what is read of them, what a fit writes there, and what it leaves alone."""

import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.malicious import CANARY, Touch
from helpers.parsing import parsed
from jsonargparse import Namespace
from lightning.pytorch.loggers import CSVLogger
from torch.optim.optimizer import ParamsT

from duality_ssl import JointEmbedding, __version__
from duality_ssl.cli import main
from duality_ssl.runs.config import dump_run_config
from duality_ssl.runs.folder import (
    Checkpoint,
    RunFolder,
    claim_version,
    newest_checkpoint,
    read_checkpoint,
    versions,
)
from duality_ssl.runs.resume import flatten

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = [
    *("-c", str(CONFIGS / "data/digits.yaml"), "--data.subset", "128", "--data.batch_size", "64"),
    *("--model.projector", "32-32", "--model.warmup_epochs", "0", "--trainer.max_epochs", "3"),
    *("--trainer.enable_progress_bar", "false", "--trainer.limit_val_batches", "1"),
    *("--without", "[probe, knn, rankme, duality, guard, views, best_checkpoint]"),
]
FIT = ["fit", *SMALL, "--model", "VICReg"]
LAST = ["--ckpt_path", "last"]


def save(path: Path, step: int, epochs: int = 0, **entries: Any) -> Path:
    """Write what matters of a checkpoint."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "state_dict": {"weight": torch.arange(20_000.0)},
        "optimizer_states": [],
        "global_step": step,
        "loops": {"fit_loop": {"epoch_progress": {"current": {"processed": epochs}}}},
    }
    torch.save({**content, **entries}, path)
    return path


def test_versions_are_sorted_by_their_number(tmp_path: Path) -> None:
    assert versions(tmp_path / "no") == []
    for name in ("version_2", "version_10", "version_9", "version_x", "version_11_copy", "other"):
        (tmp_path / name).mkdir()
    assert [run.name for run in versions(tmp_path)] == ["version_2", "version_9", "version_10"]
    (tmp_path / "version_10/config.yaml").touch()
    with ExitStack() as held:
        assert claim_version(tmp_path, held).name == "version_11"


def test_folder_of_a_fit_that_was_killed_at_once_is_claimed_again(tmp_path: Path) -> None:
    for _ in range(2):
        with ExitStack() as held:
            assert claim_version(tmp_path, held).name == "version_0"


def test_two_fits_that_start_at_once_get_two_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lock(run: Path) -> AbstractContextManager[None]:
        if run.name == "version_0":
            raise ValueError("another process has it")
        return nullcontext()

    monkeypatch.setattr("duality_ssl.runs.folder.lock_run", lock)
    with ExitStack() as held:
        assert claim_version(tmp_path / "a/b", held).name == "version_1"


@pytest.mark.parametrize(
    ("written", "newest"),
    [
        ({}, None),
        ({"last": (4, 2), "best": (2, 1)}, "last"),
        ({"last": (4, 2), "best": (4, 1)}, "last"),
        ({"last": (4, 2), "best": (4, 2), "zoo": (4, 2)}, "last"),
        ({"best": (4, 2), "any": (4, 2)}, "any"),
        ({"last": (4, 2), "step-6": (6, 2)}, "step-6"),
    ],
    ids=["none", "last", "best at the same step", "copies", "best comes first", "a later step"],
)
def test_the_newest_checkpoint_is_the_furthest(
    written: dict[str, tuple[int, int]], newest: str | None, tmp_path: Path
) -> None:
    for name, (step, epochs) in written.items():
        save(tmp_path / f"checkpoints/{name}.ckpt", step, epochs)
    found = newest_checkpoint(tmp_path)
    assert (found and found.path.stem) == newest


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), r"\(0 bytes\) cannot be read as a checkpoint"),
    "half": (half, "cannot be read as a checkpoint: it is truncated"),
    "random": (lambda path: path.write_bytes(os.urandom(9000)), "cannot be read as a checkpoint"),
    "text": (lambda path: path.write_text("weights"), "cannot be read as a checkpoint"),
    "one byte": (flip_a_byte, "the checksum of .* is wrong"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps(Touch())), "cannot be read"),
    "object": (lambda path: torch.save(Touch(), path), "cannot be read as a checkpoint"),
    "tensor": (lambda path: torch.save(torch.zeros(2), path), "is no checkpoint to resume from"),
    "no counts": (
        lambda path: save(path, 4, loops={"fit_loop": {}}),
        "is no checkpoint to resume from: it counts no epochs",
    ),
    "weights": (
        lambda path: torch.save({"state_dict": {}}, path),
        "it lacks global_step, loops, optimizer_states",
    ),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_checkpoint_is_named_and_the_one_before_it_offered(
    damage: Callable[[Path], object], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "checkpoints/best.ckpt", 2)
    before = save(tmp_path / "checkpoints/previous.ckpt", 3)
    last = save(tmp_path / "checkpoints/last.ckpt", 4)
    damage(last)
    with pytest.raises(ValueError, match=said) as error:
        read_checkpoint(last)
    assert str(error.value).startswith(str(last))
    assert str(error.value).endswith(f"The one before it: --ckpt_path {before}")
    with pytest.warns(UserWarning, match=re.escape(str(last))):
        assert newest_checkpoint(tmp_path) == Checkpoint(before, 3, 0)
    assert not CANARY.exists()


def test_missing_checkpoint_is_named_and_the_newest_one_offered(tmp_path: Path) -> None:
    newest = save(tmp_path / "checkpoints/best.ckpt", 2)
    with pytest.raises(FileNotFoundError, match=r"There is no checkpoint .*last\.ckpt") as error:
        read_checkpoint(tmp_path / "checkpoints/last.ckpt")
    assert str(error.value).endswith(f"--ckpt_path {newest}")


def test_damaged_checkpoint_with_none_before_it(tmp_path: Path) -> None:
    last = save(tmp_path / "checkpoints/last.ckpt", 4)
    half(last)
    with pytest.raises(ValueError, match=r"a different kind of file\.$"):
        read_checkpoint(last)
    with pytest.warns(UserWarning, match="It is skipped"):
        assert newest_checkpoint(tmp_path) is None


@pytest.mark.parametrize(
    ("epochs", "steps", "max_epochs", "max_steps", "complete"),
    [
        (3, 30, 3, -1, True),
        (3, 30, 4, -1, False),
        (4, 40, 3, -1, True),
        (3, 30, None, 30, True),
        (3, 30, None, 31, False),
        (3, 30, 10, 30, True),
        (3, 30, -1, -1, False),
        (999, 30, None, -1, False),
        (1000, 30, None, -1, True),
    ],
)
def test_complete_is_what_has_reached_a_limit(
    epochs: int, steps: int, max_epochs: int | None, max_steps: int, complete: bool
) -> None:
    checkpoint = Checkpoint(Path("last.ckpt"), steps, epochs)
    assert checkpoint.is_complete(max_epochs, max_steps) == complete


class Killed(Exception):
    """Ends a fit."""


def fit_until_epoch(epoch: int, words: list[str], patch: pytest.MonkeyPatch) -> None:
    """Run a fit that breaks off when an epoch starts."""

    def break_off(self: JointEmbedding) -> None:
        if self.current_epoch == epoch:
            raise Killed

    with patch.context() as context:
        context.setattr(JointEmbedding, "on_train_epoch_start", break_off, raising=False)
        with pytest.raises(Killed):
            main(words)


def content(folder: Path) -> dict[str, tuple[int, bytes]]:
    """All files below a folder, with their times and bytes."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def epochs_of(run: Path) -> int:
    return read_checkpoint(run / "checkpoints/last.ckpt").epochs


def config_of(run: Path) -> dict[str, Any]:
    return yaml.safe_load((run / "config.yaml").read_text())


def test_one_command_starts_resumes_and_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path("runs/digits/VICReg/version_0")
    fit_until_epoch(0, [*FIT, *LAST], monkeypatch)  # no checkpoint yet
    fit_until_epoch(2, [*FIT, *LAST], monkeypatch)
    assert (run / "config.yaml").read_text().startswith(f"# duality_ssl {__version__}\n")
    assert (config_of(run)["ckpt_path"], config_of(run)["resume"]) == (None, False)
    assert epochs_of(run) == 2
    main([*FIT, *LAST])
    assert epochs_of(run) == 3
    before = content(tmp_path)
    with caplog.at_level("INFO"), pytest.raises(SystemExit) as done:
        main([*FIT, *LAST])
    assert done.value.code == 0
    assert f"{run}/checkpoints/last.ckpt is complete, at epoch 3 and step 6" in caplog.text
    assert "raise --trainer.max_epochs" in caplog.text
    assert content(tmp_path) == before
    assert [path.name for path in run.parent.iterdir()] == ["version_0"]
    assert not list(run.glob("config-until*"))


def test_a_sweep_over_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/digits/VICReg")
    words = [*FIT, *LAST, "--trainer.max_epochs", "1", "--seed_everything"]
    fit_until_epoch(0, [*words, "0"], monkeypatch)
    with caplog.at_level("INFO"):
        main([*words, "1"])
    assert f"new version in {folder}: version_0 had seed_everything 0 (now 1)." in caplog.text
    main([*words, "0"])
    assert [epochs_of(run) for run in versions(folder)] == [1, 1]
    assert [config_of(run)["seed_everything"] for run in versions(folder)] == [0, 1]


def test_explicit_run_is_resumed_in_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path("runs/digits/VICReg/version_0")
    fit_until_epoch(1, [*FIT, "--model.covariance", "3"], monkeypatch)
    former = (run / "config.yaml").read_text()
    main(["fit", "--ckpt_path", str(run.absolute()), "--trainer.max_epochs", "2"])
    assert epochs_of(run) == 2
    assert [path.name for path in run.parent.iterdir()] == ["version_0"]
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    folders = {state["dirpath"] for state in checkpoint["callbacks"].values() if "dirpath" in state}
    assert folders == {str(run / "checkpoints")}
    # options that are not given are the run's; the former config is kept
    assert config_of(run)["model"]["init_args"]["covariance"] == 3
    assert config_of(run)["trainer"]["max_epochs"] == 2
    assert (run / "config-until-step-2.yaml").read_text() == former


def test_other_values_start_a_version_from_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path("runs/digits/VICReg/version_0")
    fit_until_epoch(1, FIT, monkeypatch)
    before = content(run)
    with caplog.at_level("INFO"):
        main(["fit", "--ckpt_path", str(run), "--model.weight_decay", "0.25"])
    assert "keeps its own model.weight_decay" in caplog.text
    assert content(run) == before
    new = run.with_name("version_1")
    assert config_of(new)["model"]["init_args"]["weight_decay"] == 0.25
    last = torch.load(new / "checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 6
    assert last["optimizer_states"][0]["param_groups"][0]["weight_decay"] == 1e-4


@pytest.fixture(scope="module")
def config() -> str:
    """Content of a run's ``config.yaml``."""
    command = parsed(*FIT, "--model.optimizer", "AdamW")
    return dump_run_config(command.options_parser, command.options)


@pytest.fixture
def run(config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with a config and a checkpoint, which nothing has trained."""
    monkeypatch.chdir(tmp_path)
    run = Path("runs/digits/VICReg/version_0")
    save(run / "checkpoints/last.ckpt", 2, 1)
    (run / "config.yaml").write_text(config)
    return run


NAMED = {
    "last": LAST,
    "option": ["--resume", "true"],
    "option in a config": ["-c", "resume.yaml"],
    "last in a config": ["-c", "last.yaml"],
    "folder in a config": ["-c", "folder.yaml"],
    "twice": ["--ckpt_path", "no", *LAST],
    "after a config": ["-c", "no.yaml", "--ckpt_path=last"],
    "folder": ["--ckpt_path", "runs/digits/VICReg/version_0"],
    "file": ["--ckpt_path=runs/digits/VICReg/version_0/checkpoints/last.ckpt"],
}


@pytest.mark.parametrize("words", NAMED.values(), ids=NAMED)
def test_every_way_to_name_a_run_means_the_same(words: list[str], run: Path) -> None:
    Path("resume.yaml").write_text("resume: true")
    Path("last.yaml").write_text("ckpt_path: last")
    Path("no.yaml").write_text("ckpt_path: nosuch")
    Path("folder.yaml").write_text(f"ckpt_path: {run}")
    command = parsed(*FIT, *words)
    assert command.resume[:3] == (run, Checkpoint(run / "checkpoints/last.ckpt", 2, 1), False)
    assert command.options.ckpt_path is None


def test_null_names_no_run(run: Path) -> None:
    assert parsed(*FIT, *LAST, "--ckpt_path", "null").resume.run is None


LISTS = {
    "callbacks": ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/rankme"],
    "two callbacks": [
        *("--trainer.callbacks+", "ModelSummary", "--trainer.callbacks+", "DeviceStatsMonitor"),
    ],
    "callbacks in a config": ["-c", "list.yaml"],
    "logger": ["--trainer.logger+=CSVLogger", "--trainer.logger.save_dir=logs"],
    "plugins": ["--trainer.plugins+=duality_ssl.runs.checkpoint_io.AtomicCheckpointIO"],
    "devices": ["--trainer.devices+=0"],
    "representations": ["--probe.representations+=projector"],
    "left out": ["--without+=features"],
}


@pytest.mark.parametrize("words", LISTS.values(), ids=LISTS)
def test_a_list_that_is_appended_to_is_the_same_after_a_resume(words: list[str], run: Path) -> None:
    Path("list.yaml").write_text("trainer: {callbacks+: {class_path: ModelSummary}}")
    words = [word for word in [*FIT, *words] if not word.startswith("[probe")]
    words.remove("--without")
    first = parsed(*words)
    (run / "config.yaml").write_text(dump_run_config(first.options_parser, first.options))
    again = parsed(*words, *LAST)
    assert again.resume.run == run
    # and without the option the run's own list holds
    without = parsed("fit", "--ckpt_path", str(run))
    first, again, without = (
        flatten(command.options.as_dict()) | {"config": None} for command in (first, again, without)
    )
    assert again == without == first


OLD = """
nosuch: 3
seed_everything: 0
model:
  init_args: {radius: 2.0, backbone: duality_ssl.backbones.resnet_tiny, in_channels: 1}
  class_path: duality_ssl.SpectralContrastive
knn: {k: 7, gone: 1}
trainer:
  max_epochs: 9
  callbacks:
  - class_path: duality_ssl.callbacks.checkpoint.LastCheckpoint
  - class_path: duality_ssl.callbacks.StepSeed
  profiler: {class_path: duality_ssl.profiler.StepProfiler}
  plugins: [{class_path: duality_ssl.checkpoint_io.AtomicCheckpointIO}]
"""


def test_config_of_an_older_release(run: Path) -> None:
    (run / "config.yaml").write_text(OLD)
    with pytest.warns(UserWarning, match=r"sets nosuch, knn\.gone: unknown to duality_ssl"):
        options = parsed("test", "--ckpt_path", str(run)).options
    arguments = options.model.init_args
    assert arguments.mu == 2  # both names are of the squared radius
    assert arguments.backbone == "duality_ssl.networks.backbones.resnet_tiny"
    assert options.knn.k == 7
    named = [*options.trainer.callbacks, options.trainer.profiler, *options.trainer.plugins]
    assert [each.class_path for each in named] == [
        "duality_ssl.runs.checkpoint.LastCheckpoint",
        "duality_ssl.callbacks.StepSeed",
        "lightning.pytorch.profilers.SimpleProfiler",
        "duality_ssl.runs.checkpoint_io.AtomicCheckpointIO",
    ]


def test_unknown_argument_of_the_model_is_refused(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "config.yaml").write_text(OLD.replace("radius", "radious"))
    with pytest.raises(SystemExit), pytest.warns(UserWarning, match="nosuch"):
        parsed("test", "--ckpt_path", str(run))
    assert "SpectralContrastive has no option 'radious'" in capsys.readouterr().err


class NeedsRate(torch.optim.SGD):
    """An optimizer whose learning rate has no default."""

    def __init__(self, params: ParamsT, lr: float, weight_decay: float = 0.5) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay)


@pytest.mark.parametrize(
    ("optimizer", "kept"),
    [
        ("torch.optim.AdamW", {"eps"}),
        ("duality_ssl.optim.LARS", {"eps"}),
        ("test_runs.NeedsRate", {"lr", "eps"}),
    ],
)
def test_config_leaves_out_what_the_method_replaces(optimizer: str, kept: set[str]) -> None:
    class Parser:
        def dump(self, options: Namespace, **_: Any) -> str:
            return yaml.safe_dump(options.as_dict())

    arguments = Namespace(lr=1e-3, weight_decay=0.01, eps=1e-8)
    chosen = Namespace(class_path=optimizer, init_args=arguments)
    options = Namespace(
        ckpt_path="a", resume=True, model=Namespace(init_args=Namespace(optimizer=chosen))
    )
    written = yaml.safe_load(dump_run_config(Parser(), options))
    assert written["model"]["init_args"]["optimizer"]["init_args"].keys() == kept
    assert "lr" in arguments


def test_damaged_last_is_skipped_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/digits/VICReg/version_0/checkpoints")
    fit_until_epoch(1, FIT, monkeypatch)
    shutil.copy(folder / "last.ckpt", folder / "before.ckpt")
    half(folder / "last.ckpt")
    with pytest.raises(SystemExit) as done:
        main(["fit", "--ckpt_path", str(folder / "last.ckpt")])
    assert done.value.code == 2
    said = capsys.readouterr().err
    assert f"error: {folder}/last.ckpt (" in said
    assert f"The one before it: --ckpt_path {folder.absolute()}/before.ckpt (DUALITY" in said
    with pytest.warns(UserWarning, match=r"last\.ckpt .* cannot be read .* It is skipped"):
        main([*FIT, *LAST])
    assert epochs_of(folder.parent) == 3


def test_without_loggers_there_is_no_last_run(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*FIT, *LAST, "--trainer.logger", "false"])
    assert "Expected no --trainer.logger false" in capsys.readouterr().err


class Board(CSVLogger):
    """A logger that writes to the working folder by default, as loggers of services do."""

    def __init__(self, save_dir: str = ".", project: str = "none") -> None:
        super().__init__(save_dir, name=project, version=project)


def test_a_logger_of_the_user_is_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path("runs/digits/VICReg/version_0")
    board = ["--trainer.logger", "test_runs.Board", "--trainer.logger.project", "mine"]
    fit_until_epoch(1, [*FIT, *board], monkeypatch)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert {path.name for path in run.iterdir()} >= {"config.yaml", "metrics.csv", ".lock", "mine"}
    assert config_of(run)["trainer"]["logger"]["init_args"]["save_dir"] == "."
    more = ["--trainer.logger+", "CSVLogger", "--trainer.logger.save_dir", "logs"]
    main([*FIT, *LAST, *more])
    assert epochs_of(run) == 3
    assert list(Path("logs").rglob("metrics.csv"))
    assert [path.name for path in run.parent.iterdir()] == ["version_0"]


@pytest.mark.slow
def test_weights_and_biases_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = Path("runs/digits/VICReg/version_0")
    words = [*FIT, *LAST, "--trainer.logger", "WandbLogger", "--trainer.logger.project", "mine"]
    fit_until_epoch(1, words, monkeypatch)
    wandb.finish()
    main(words)
    wandb.finish()
    assert epochs_of(run) == 3
    assert len(list(run.glob("wandb/offline-run-*"))) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


HOLD = """
import sys, time
from pathlib import Path
from duality_ssl.runs.folder import lock_run
with lock_run(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(100)
"""


def test_one_fit_at_a_time_writes_to_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path("runs/digits/VICReg/version_0")
    fit_until_epoch(1, FIT, monkeypatch)
    holder = subprocess.Popen([sys.executable, "-c", HOLD, run], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        before = content(tmp_path)
        with pytest.raises(SystemExit) as done:
            main([*FIT, *LAST])
        assert done.value.code == 2
        assert f"Another process is training in {run}: wait" in capsys.readouterr().err
        assert content(tmp_path) == before
    finally:
        holder.kill()
        holder.wait(10)
    main([*FIT, *LAST])  # the lock ends with the process
    assert epochs_of(run) == 3


def test_processes_that_see_other_checkpoints_are_told(tmp_path: Path) -> None:
    class Strategy:
        def broadcast(self, path: str) -> str:
            return "runs/last.ckpt"

    class Stub:
        global_rank, is_global_zero, strategy = 1, False, Strategy()

    folder = RunFolder(tmp_path, "", checkpoint=Checkpoint(Path("runs/previous.ckpt"), 1, 1))
    with pytest.raises(ValueError, match=r"Process 1 would resume from runs/previous\.ckpt"):
        folder.setup(Stub(), None, "fit")
