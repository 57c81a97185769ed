"""The command line as a user meets it: what a run writes, and what it says."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from duality_ssl import JointEmbedding, VICReg
from duality_ssl.cli.command import Command, main, method_names

CONFIGS = Path(__file__).parents[2] / "configs"
DIGITS = str(CONFIGS / "data/digits.yaml")
SHORT = ["--trainer.max_epochs", "2", "--model.warmup_epochs", "1"]
SHORTEST = ["--trainer.max_epochs", "1", "--model.warmup_epochs", "0"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a short run of VICReg on the digits, evaluated and predicted with."""
    folder = tmp_path_factory.mktemp("cli")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(["fit", "-c", DIGITS, "--model", "VICReg", *SHORT])
        main(["test", "--model", "VICReg", "--ckpt_path", "last"])
        main(["predict", "--ckpt_path", "runs/digits/VICReg/version_0/checkpoints/best.ckpt"])
    return folder / "runs/digits/VICReg/version_0"


def test_fit_writes_config_events_and_checkpoints(run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["class_path"] == "duality_ssl.VICReg"
    model = config["model"]["init_args"]
    assert model["covariance"] == 1
    # base_lr and weight_decay of the method replace the optimiser's own
    assert "betas" in model["optimizer"]["init_args"]
    assert not {"lr", "weight_decay"} & model["optimizer"]["init_args"].keys()
    assert config["data"]["batch_size"] == 256
    assert list(run.glob("events.out.tfevents.*"))
    assert {path.name for path in (run / "checkpoints").glob("*.ckpt")} == {
        "last.ckpt",
        "previous.ckpt",
        "best.ckpt",
    }


def test_channels_are_those_of_the_data(run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["init_args"]["in_channels"] == 1
    content = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert content["hyper_parameters"]["in_channels"] == 1
    assert VICReg.load_from_checkpoint(run / "checkpoints/last.ckpt").in_channels == 1


@pytest.mark.parametrize(
    "words",
    [["--model.in_channels", "1"], ["--model.in_channels", "3", "--model.in_channels=null"]],
    ids=["set", "unset again"],
)
def test_channels_that_are_set(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    short = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1"]
    vicreg = ["--model", "VICReg", "--model.warmup_epochs", "0", *words]
    main(["fit", "-c", DIGITS, *vicreg, *short, "--experiment", "set"])
    (path,) = Path("runs/set").glob("*/version_0/checkpoints/last.ckpt")
    main(["predict", "--ckpt_path", str(path)])
    assert VICReg.load_from_checkpoint(path).in_channels == 1


OF_DIGITS = """
from duality_ssl import JointEmbedding, criteria

class OfDigits(JointEmbedding, criterion=criteria.DCL):
    def __init__(self, backbone: str = "resnet_tiny", width: int = 8) -> None:
        super().__init__(backbone=backbone, projector=f"{width}", in_channels=1, warmup_epochs=0)
"""
USED = """
from duality_ssl.cli import main
from mine import OfDigits

short = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1"]
main(["fit", "--model", "mine.OfDigits", "--experiment", "own", *short])
path = "runs/own/OfDigits/version_0/checkpoints/last.ckpt"
main(["predict", "--model", "mine.OfDigits", "--ckpt_path", path])
assert OfDigits.load_from_checkpoint(path).in_channels == 1
"""


def test_a_method_with_arguments_of_its_own(tmp_path: Path) -> None:
    """In its own process: an imported method is offered by `--model` in every later test."""
    (tmp_path / "mine.py").write_text(OF_DIGITS)
    command = [sys.executable, "-c", USED]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_fit_writes_every_metric(run: Path) -> None:
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    logged = {name for row in rows for name, value in row.items() if value}
    assert logged >= {
        *("train/loss", "train/invariance", "train/variance", "train/covariance"),
        *("train/probe_loss", "val/probe_top1", "val/probe_top5", "val/knn_top1", "val/rankme"),
        *("duality/sample_contrastive", "duality/dimension_contrastive", "duality/cosine_std"),
    }
    assert sum(bool(row["val/probe_top1"]) for row in rows) == 2


def test_checkpoint_loads_without_unpickling_anything(run: Path) -> None:
    content = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert any("OnlineLinearProbe" in name for name in content["callbacks"])
    assert content["epoch"] == 2  # finished ones


def test_test_writes_the_evaluation_beside_the_checkpoint(run: Path) -> None:
    evaluation = json.loads((run / "checkpoints/evaluation.json").read_text())
    assert {"linear_top1", "knn_top1", "few_label_top1", "rankme"} <= evaluation.keys()
    assert 0.5 < evaluation["linear_top1"] <= 1
    assert (evaluation["num_train"], evaluation["num_val"]) == (1437, 360)


def test_predict_writes_features_and_labels(run: Path) -> None:
    with np.load(run / "checkpoints/features-best.npz", allow_pickle=False) as file:
        assert file["features"].shape == (360, 128)
        assert np.bincount(file["labels"]).sum() == 360


def test_second_run_gets_a_folder_of_its_own(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parents[3])
    before = (run / "metrics.csv").read_text()
    main(["fit", "-c", DIGITS, "--model", "VICReg", *SHORT, "--trainer.limit_train_batches", "1"])
    assert (run.parent / "version_1/metrics.csv").is_file()
    assert (run / "metrics.csv").read_text() == before


def test_validate_prints_the_metrics(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run.parents[3])
    main(["validate", "--ckpt_path", str(run)])
    assert "val/probe_top1" in capsys.readouterr().out


def test_pretrained_backbone_of_a_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parents[3])
    pretrained = ["--model.pretrained", str(run / "checkpoints/last.ckpt")]
    zero_steps = [*SHORTEST, "--model.base_lr", "0", "--experiment", "from"]
    with pytest.warns(UserWarning, match="the learning rate is 0"):
        main(["fit", "-c", DIGITS, "--model", "DCL", *pretrained, *zero_steps])
    ours = torch.load("runs/from/DCL/version_0/checkpoints/last.ckpt", weights_only=True)
    theirs = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    weights = ours["state_dict"]["backbone.stem.0.weight"]
    assert torch.equal(weights, theirs["state_dict"]["backbone.stem.0.weight"])


def test_unlabelled_folder_trains_and_says_what_is_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for i in range(8):
        pixels = rng.integers(0, 256, (20 + i, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"images/{i}.png")
    small = ["--data.image_size", "16", "--data.batch_size", "4", "--model.backbone", "resnet_tiny"]
    source = ["--data.source", "folder", "--data.root", "images", "--model.projector", "16-16"]
    main(["fit", "--model", "SimCLR", *source, *small, "--trainer.max_epochs", "1"])
    off = [str(warning.message) for warning in recwarn if " off" in str(warning.message)]
    for callback in ("OnlineLinearProbe", "OnlineKNN", "BestCheckpoint"):
        assert sum(message.startswith(callback) for message in off) == 1
    assert (tmp_path / "runs/folder/SimCLR/version_0/checkpoints/last.ckpt").is_file()


def test_bug_is_not_passed_off_as_a_mistake(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    broken = lambda *_, **__: torch.zeros(2, 3) @ torch.zeros(2, 3)  # noqa: E731
    monkeypatch.setattr("duality_ssl.criteria.VICReg.terms", broken)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        main(["fit", "-c", DIGITS, "--model", "VICReg", "--trainer.fast_dev_run", "true"])


def test_resumed_run_ends_as_one_that_never_stopped(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def stop(self: JointEmbedding) -> None:
        self.trainer.should_stop = True

    with monkeypatch.context() as patch:  # the schedules are those of the whole run
        patch.setattr(JointEmbedding, "on_train_epoch_end", stop)
        main(["fit", "-c", DIGITS, "--model", "VICReg", *SHORT])
    own = Path("runs/digits/VICReg/version_0")
    assert torch.load(own / "checkpoints/last.ckpt", weights_only=True)["epoch"] == 1
    main(["fit", "--ckpt_path", str(own)])
    assert "AdamW" in (own / "config.yaml").read_text()
    whole, resumed = (
        torch.load(folder / "checkpoints/last.ckpt", weights_only=True) for folder in (run, own)
    )
    assert resumed["epoch"] == whole["epoch"] == 2
    for key, tensor in whole["state_dict"].items():
        assert torch.equal(resumed["state_dict"][key], tensor)
    assert (own / "metrics.csv").read_text() == (run / "metrics.csv").read_text()


def last_metrics(run: Path) -> dict[str, str]:
    """The last value of every metric of a run."""
    with (run / "metrics.csv").open() as file:
        return {name: value for row in csv.DictReader(file) for name, value in row.items() if value}


def test_last_is_the_last_and_best_is_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # the best of a minimum that falls at first is an early one
    best = ["--best_checkpoint.monitor", "val/rankme", "--best_checkpoint.mode", "min"]
    words = ["--trainer.max_epochs", "3", "--last_checkpoint.every_n_epochs", "2"]
    main(["fit", "-c", DIGITS, "--model", "VICReg", *best, *words])
    folder = Path("runs/digits/VICReg/version_0")
    with (folder / "metrics.csv").open() as file:
        ranks = [float(row["val/rankme"]) for row in csv.DictReader(file) if row["val/rankme"]]
    epochs = {
        name: torch.load(folder / f"checkpoints/{name}.ckpt", weights_only=True)["epoch"]
        for name in ("last", "best")
    }
    # finished epochs: the validation is within its own
    assert epochs == {"last": 3, "best": ranks.index(min(ranks))}
    assert epochs["best"] != 2


def test_callbacks_can_be_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    left_out = ["--without", "[duality, knn]", *SHORTEST]
    main(["fit", "-c", DIGITS, "--model", "VICReg", *left_out])
    logged = last_metrics(Path("runs/digits/VICReg/version_0"))
    assert "val/probe_top1" in logged
    assert not [name for name in logged if name.startswith(("duality/", "val/knn"))]


def test_end_of_a_fit_says_where_the_time_went(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--trainer.enable_progress_bar", "false", "--trainer.profiler", "SimpleProfiler"]
    words += ["--trainer.profiler.filename", "profile"]
    main(["fit", "-c", DIGITS, "--model", "VICReg", *words, *SHORTEST])
    out = capsys.readouterr().out
    shares = r"\d+% of the time waiting for data\."
    assert len(re.findall(rf"^Trained on 1,280 images .* images/s, {shares}$", out, re.M)) == 1
    (written,) = Path("runs/digits/VICReg/version_0").glob("*profile*")
    assert "run_training_epoch" in written.read_text()


def test_fit_estimates_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    with caplog.at_level("INFO"):
        main(["fit", "-c", DIGITS, "--model", "VICReg", "--trainer.fast_dev_run", "true"])
    assert "Projector of 0.6 M weights: 9 MiB with gradients and optimiser state" in caplog.text


def test_no_checkpoint_where_none_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    none = ["--trainer.enable_checkpointing", "false", *SHORTEST]
    main(["fit", "-c", DIGITS, "--model", "VICReg", *none])
    assert not list(tmp_path.rglob("*.ckpt"))


def test_untrained_network_is_evaluated_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match="Without --ckpt_path the network is untrained"):
        main(["test", "-c", DIGITS, "--model", "VICReg"])
    assert json.loads(Path("runs/evaluation.json").read_text())["checkpoint"] is None


def test_help_is_readable(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for name in (*method_names(), "fit", "validate", "test", "predict"))
    assert max(map(len, text.splitlines())) <= 100


def test_options_are_collected_of_the_subcommand_that_is_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    collected = []
    add = Command.add_core_arguments_to_parser
    spy = lambda self, parser: (collected.append(parser), add(self, parser))  # noqa: E731
    monkeypatch.setattr(Command, "add_core_arguments_to_parser", spy)
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    assert len(collected) == 1


@pytest.mark.parametrize("method", method_names())
def test_help_of_a_method_documents_every_argument(
    method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--model.help", method])
    text = " ".join(capsys.readouterr().out.split())
    entries = text.split(" --model.")[1:]
    undocumented = [entry for entry in entries if re.match(r"\S+ \S+ \(type:", entry)]
    assert len(entries) > 12
    assert not undocumented


@pytest.mark.filterwarnings("ignore")  # bolts warns of itself, its dependencies and its age
def test_optimiser_and_schedule_of_bolts_can_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bolts.yaml").write_text(
        """
model:
  init_args:
    optimizer: {class_path: pl_bolts.optimizers.LARS, init_args: {lr: 0.1, momentum: 0.9}}
    scheduler:
      class_path: pl_bolts.optimizers.LinearWarmupCosineAnnealingLR
      init_args: {warmup_epochs: 1, max_epochs: 2}
"""
    )
    short = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1"]
    main(["fit", "-c", DIGITS, "-c", "bolts.yaml", "--model", "VICReg", *short])
    config = yaml.safe_load(Path("runs/digits/VICReg/version_0/config.yaml").read_text())
    model = config["model"]["init_args"]
    assert model["optimizer"]["class_path"] == "pl_bolts.optimizers.LARS"
    state = torch.load("runs/digits/VICReg/version_0/checkpoints/last.ckpt", weights_only=True)
    assert "momentum_buffer" in state["optimizer_states"][0]["state"][0]
