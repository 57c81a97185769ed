"""What a fit resumes, as a table: what the user says now, what the run was, and the decision."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from duality_ssl.runs.resume import find_checkpoint, flatten, resolve_resume

Options = dict[str, Any]
DEFAULTS: Options = {
    "seed_everything": 0,
    "experiment": None,
    "model": {"class_path": "duality_ssl.VICReg", "init_args": {"base_lr": 0.3, "compile": False}},
    "data": {"source": "digits", "batch_size": 64, "root": None, "num_workers": 0},
    "trainer": {
        **{"default_root_dir": "runs", "max_epochs": 3, "max_steps": -1, "precision": None},
        **{"devices": "auto", "num_nodes": 1, "accumulate_grad_batches": 1},
    },
    "knn": {"k": 20},
}


def over(options: Options, changes: dict[str, Any]) -> Options:
    """Options with others, by their names on the command line."""
    options = {k: over(v, {}) if isinstance(v, dict) else v for k, v in options.items()}
    for name, value in changes.items():
        *groups, key = name.split(".")
        inside = options
        for group in groups:
            inside = inside[group]
        if key in inside.get("init_args", {}):
            inside = inside["init_args"]
        inside[key] = value
    return options


def save(path: Path, step: int, epochs: int = 0) -> Path:
    """Write what decides of a checkpoint."""
    path.parent.mkdir(parents=True, exist_ok=True)
    loops = {"fit_loop": {"epoch_progress": {"current": {"processed": epochs}}}}
    content = {"state_dict": {}, "optimizer_states": [], "global_step": step, "loops": loops}
    torch.save(content, path)
    return path


class Runs(dict[Path, Options]):
    """Runs on the disk, and their options."""

    def add(self, number: int = 0, step: int = 4, **changes: Any) -> Path:
        """A run after two epochs, its last checkpoint at a step."""
        run = Path(f"runs/digits/VICReg/version_{number}")
        run.mkdir(parents=True)
        self[run.resolve()] = over(DEFAULTS, changes)
        if step:
            save(run / "checkpoints/last.ckpt", step, 2)
        return run

    def resolve(self, given: object, said: Options) -> Any:
        """The decision."""
        return resolve_resume(
            str(given),
            lambda run: self.get(run.resolve()),
            lambda config: over(config or DEFAULTS, said),
        )


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    monkeypatch.chdir(tmp_path)
    return Runs()


BATCH = {"data.batch_size": 32, "trainer.accumulate_grad_batches": 2}
RESUMED: dict[str, tuple[Options, Options, str]] = {
    "nothing": ({}, {"model.base_lr": 0.1, "seed_everything": 7}, ""),
    "the same seed": ({"seed_everything": 7}, {"seed_everything": 7}, ""),
    "more epochs": ({"trainer.max_epochs": 9}, {}, "trainer.max_epochs 3 (now 9)"),
    "more steps": ({"trainer.max_steps": 99}, {}, "trainer.max_steps -1 (now 99)"),
    "workers": ({"data.num_workers": 2}, {}, "data.num_workers 0 (now 2)"),
    "place of the data": ({"data.root": Path("/scratch")}, {}, "data.root None (now /scratch)"),
    "compilation": ({"model.compile": True}, {}, "model.compile False (now True)"),
    "neighbours": ({"knn.k": 5}, {}, "knn.k 20 (now 5)"),
    "a name of the precision": (
        {"trainer.precision": 32},
        {"trainer.precision": "32-true"},
        "trainer.precision 32-true (now 32)",
    ),
    "accumulation": (BATCH, {}, "data.batch_size 64 (now 32)"),
    "devices": (
        {"data.batch_size": 32, "trainer.devices": "0,1"},
        {"trainer.devices": 1},
        "trainer.devices 1 (now 0,1)",
    ),
    "nodes": ({"data.batch_size": 32, "trainer.num_nodes": 2}, {}, "trainer.num_nodes 1 (now 2)"),
    "a number for auto": ({"trainer.devices": 2}, {}, "trainer.devices auto (now 2)"),
}
CONTRADICTED: dict[str, tuple[Options, Options, str]] = {
    "seed": ({"seed_everything": 1}, {}, "seed_everything 0 (now 1)"),
    "the default seed": ({"seed_everything": 0}, {"seed_everything": 1}, "everything 1 (now 0)"),
    "learning rate": ({"model.base_lr": 0.1}, {}, "model.base_lr 0.3 (now 0.1)"),
    "optimizer": (
        {"model.optimizer": {"class_path": "torch.optim.SGD"}},
        {"model.optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"eps": 1}}},
        "model.optimizer torch.optim.AdamW (now torch.optim.SGD)",
    ),
    "momentum": (
        {"model.optimizer": {"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.5}}},
        {"model.optimizer": {"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.9}}},
        "model.optimizer.momentum 0.9 (now 0.5)",
    ),
    "views": ({"data.view1": {"scale": (0.1, 1)}}, {}, "data.view1.scale None (now [0.1, 1])"),
    "precision": ({"trainer.precision": "bf16"}, {}, "precision 32-true (now bf16-mixed)"),
    "clipping": ({"trainer.gradient_clip_val": 1}, {}, "gradient_clip_val None (now 1)"),
    "batch": ({"data.batch_size": 32}, {}, "global batch 64 (now 32)"),
    "accumulation alone": ({"trainer.accumulate_grad_batches": 2}, {}, "batch 64 (now 128)"),
    "devices alone": ({"trainer.devices": [0, 1]}, {"trainer.devices": "1"}, "batch 64 (now 128)"),
}
EVERYHOW = pytest.mark.parametrize("given", ["last", "folder", "file"])


def named(given: str, run: Path) -> object:
    return {"last": "last", "folder": run, "file": (run / "checkpoints/last.ckpt").resolve()}[given]


@EVERYHOW
@pytest.mark.parametrize(("said", "former", "note"), RESUMED.values(), ids=RESUMED)
def test_resumed_in_its_folder(
    said: Options, former: Options, note: str, given: str, runs: Runs
) -> None:
    run = runs.add(**former)
    decision = runs.resolve(named(given, run), said)
    assert (decision.run, decision.checkpoint.step, decision.complete) == (run, 4, False)
    assert decision.note.startswith("Resume ")
    assert note in decision.note
    assert bool(note) == ("; it had" in decision.note)


@EVERYHOW
@pytest.mark.parametrize(("said", "former", "note"), CONTRADICTED.values(), ids=CONTRADICTED)
def test_contradicted_by_what_the_user_says(
    said: Options, former: Options, note: str, given: str, runs: Runs
) -> None:
    run = runs.add(**former)
    decision = runs.resolve(named(given, run), said)
    assert decision.run is None
    assert decision.checkpoint is None if given == "last" else decision.checkpoint.step == 4
    assert decision.note.startswith("Start a new version in runs/digits/VICReg")
    assert note in decision.note


def test_a_sweep_finds_the_run_of_each_seed(runs: Runs) -> None:
    for number, seed in enumerate([5, 6, 7, 6]):
        runs.add(number, seed_everything=seed)
    for seed, number in {5: 0, 6: 3, 7: 2}.items():
        assert runs.resolve("last", {"seed_everything": seed}).run.name == f"version_{number}"
    assert runs.resolve("last", {"seed_everything": 8}).run is None
    assert runs.resolve("last", {}).run.name == "version_3"
    # said values that rule a run out are no contradiction of another one
    runs.add(4, seed_everything=9, **{"model.base_lr": 0.1})
    assert (
        runs.resolve("last", {"seed_everything": 5, "model.base_lr": 0.3}).run.name == "version_0"
    )


def test_a_sweep_finds_the_run_of_each_batch_and_precision(runs: Runs) -> None:
    for number, batch in enumerate([64, 32]):
        runs.add(number, **{"data.batch_size": batch, "trainer.precision": ["bf16", None][number]})
    said = {"data.batch_size": 64, "trainer.precision": "bf16-mixed"}
    assert runs.resolve("last", said).run.name == "version_0"


def test_a_run_without_a_config_is_no_run(runs: Runs) -> None:
    run = runs.add(0)
    Path("runs/digits/VICReg/version_1").mkdir()
    assert runs.resolve("last", {}).run == run


def test_a_run_without_a_checkpoint_starts_again(runs: Runs) -> None:
    run = runs.add(step=0)
    decision = runs.resolve("last", {})
    assert decision == (run, None, False, f"Start {run} again: it has no checkpoint.")


def test_no_run_at_all(runs: Runs) -> None:
    assert runs.resolve("last", {}) == (None, None, False, "")


@pytest.mark.parametrize("given", ["last", "folder", "file"])
@pytest.mark.parametrize(
    ("said", "complete"),
    [({"trainer.max_epochs": 2}, True), ({}, False), ({"trainer.max_steps": 4}, True)],
    ids=["epochs", "unfinished", "steps"],
)
def test_complete(said: Options, complete: bool, given: str, runs: Runs) -> None:
    run = runs.add()
    decision = runs.resolve(named(given, run), said)
    assert decision.complete == complete
    assert ("is complete, at epoch 2 and step 4: nothing to do" in decision.note) == complete


@pytest.mark.parametrize(
    ("said", "folder"),
    [
        ({"experiment": "other"}, "runs/other/VICReg"),
        ({"model.class_path": "duality_ssl.SimCLR"}, "runs/digits/SimCLR"),
        ({"data.source": "folder"}, "runs/folder/VICReg"),
        ({"trainer.default_root_dir": "elsewhere"}, "elsewhere/digits/VICReg"),
    ],
    ids=["experiment", "method", "source", "root"],
)
def test_under_another_name_a_checkpoint_starts_a_new_run(
    said: Options, folder: str, runs: Runs
) -> None:
    run = runs.add()
    decision = runs.resolve(run, said)
    assert (decision.run, decision.checkpoint.step) == (None, 4)
    assert decision.note.startswith(f"Start a new version in {folder} from {run}")
    assert runs.resolve("last", said).run is None


def test_what_the_optimizer_keeps_is_said(runs: Runs) -> None:
    run = runs.add()
    note = runs.resolve(run, {"model.base_lr": 0.1, "model.weight_decay": 1}).note
    assert note.endswith("keeps its own model.base_lr and model.weight_decay.")


def test_a_checkpoint_of_no_run(runs: Runs) -> None:
    path = save(Path("mine/last.ckpt"), 4, 2)
    decision = runs.resolve(path, {})
    assert (decision.run, decision.note) == (
        None,
        "Start a new version in runs/digits/VICReg from mine/last.ckpt.",
    )
    runs[Path.cwd()] = {"data": 3}  # somebody's own config
    assert runs.resolve(path, over(DEFAULTS, {}) | {"experiment": "a"}).run is None


def test_a_run_that_was_moved_is_resumed_where_it_is(runs: Runs) -> None:
    run = runs.add()
    moved = Path("archive").resolve()
    run.rename(moved)
    runs[moved] = runs.pop(run.resolve())
    assert runs.resolve(moved, {}).run == moved


def test_going_back_within_a_run_is_warned_of(runs: Runs) -> None:
    run = runs.add()
    previous = save(run / "checkpoints/previous.ckpt", 2, 1)
    with pytest.warns(UserWarning, match=r"previous\.ckpt is of step 2, and .* of step 4"):
        assert runs.resolve(previous, {}).checkpoint.step == 2


def test_the_best_of_the_last_step_is_not_the_end(runs: Runs) -> None:
    """A kill between the last validation and ``last.ckpt`` leaves ``best.ckpt`` as the newest."""
    run = runs.add()
    save(run / "checkpoints/best.ckpt", 6, 3)
    decision = runs.resolve("last", {})
    assert (decision.checkpoint.path.stem, decision.complete) == ("last", False)


def test_last_of_the_other_commands_is_the_newest_checkpoint(runs: Runs) -> None:
    run = runs.add(9)
    runs.add(10, step=0)
    folder = run.parent
    assert find_checkpoint("last", lambda: folder) == run / "checkpoints/last.ckpt"
    with pytest.raises(FileNotFoundError, match="There is no checkpoint of a run in runs/no"):
        find_checkpoint("last", lambda: Path("runs/no"))
    with pytest.raises(FileNotFoundError, match=re.escape("There is no checkpoint no.ckpt. Name")):
        runs.resolve("no.ckpt", {})


def test_options_have_their_names_of_the_command_line() -> None:
    nested = {"a": {"class_path": "C", "init_args": {"b": (1, 2), "c": {"d": Path("e")}}}, "f": 1}
    assert flatten(nested) == {"a.class_path": "C", "a.b": [1, 2], "a.c.d": "e", "f": 1}
