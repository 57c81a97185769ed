"""Weights without a run: a backbone from a file, evaluated beside that file."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from duality_ssl.cli import main
from duality_ssl.networks.backbones import create_backbone

DIGITS = str(Path(__file__).parents[2] / "configs/data/digits.yaml")
QUICK = ["--evaluation.few_label_draws", "1"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of a run of two steps on the digits."""
    folder = tmp_path_factory.mktemp("frozen")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        short = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2"]
        cold = ["--model.warmup_epochs", "0"]
        main(["fit", "-c", DIGITS, "--model", "VICReg", *short, *cold])
        main(["test", "--ckpt_path", "runs/digits/VICReg/version_0", *QUICK])
    return folder / "runs/digits/VICReg/version_0/checkpoints"


def test_plain_weights_are_evaluated_beside_their_file(
    here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    state = create_backbone("resnet_tiny", 1).state_dict()
    torch.save({**state, "fc.weight": torch.ones(10, 128)}, "mine.pth")
    with caplog.at_level("INFO"):
        main(["test", "-c", DIGITS, "--model.pretrained", "mine.pth", *QUICK])
    assert f"Loaded {len(state)} of the backbone's {len(state)} tensors" in caplog.text
    assert "Missing: 0 (counts of batches). Others in the file, left out: 1." in caplog.text
    written = json.loads(Path("evaluation-mine.json").read_text())
    assert (written["method"], written["checkpoint"]) == ("FrozenBackbone", "mine.pth")
    assert written["num_features"] == 128
    assert {"linear_top1", "knn_top1", "rankme_features"} <= written.keys()
    assert sorted(path.name for path in here.iterdir()) == ["evaluation-mine.json", "mine.pth"]


@pytest.mark.parametrize("name", ["backbone.safetensors", "last.ckpt"])
def test_plain_weights_have_the_scores_of_their_run(name: str, trained: Path, here: Path) -> None:
    """The same backbone with its projector and alone; a method may be named, too."""
    before = (trained / "evaluation.json").read_bytes()
    main(
        [
            "test",
            "-c",
            DIGITS,
            "--model",
            "SimCLR",
            "--model.pretrained",
            str(trained / name),
            *QUICK,
        ]
    )
    assert (trained / "evaluation.json").read_bytes() == before
    ours = json.loads((trained / f"evaluation-{Path(name).stem}.json").read_text())
    theirs = json.loads(before)
    for score in ("linear_top1", "knn_top1", "few_label_top1", "rankme_features"):
        assert ours[score] == pytest.approx(theirs[score], rel=1e-5)


def test_features_of_plain_weights_are_written(trained: Path, here: Path) -> None:
    main(["predict", "-c", DIGITS, "--model.pretrained", str(trained / "backbone.safetensors")])
    with np.load(trained / "features-backbone.npz") as written:
        assert {*written.files} == {"features", "labels"}


def test_weights_of_another_network_stop_the_test(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = torchvision.models.resnet18().state_dict()
    torch.save({f"encoder.{key}": weight for key, weight in state.items()}, "other.pth")
    words = ["--model.backbone", "resnet18_32", "--model.pretrained", "other.pth"]
    with pytest.raises(SystemExit) as done:
        main(["test", "-c", DIGITS, *words])
    assert done.value.code == 2
    said = capsys.readouterr().err
    assert "none is there: all are missing, conv1.weight first" in said
    assert "The nearest in the file: encoder.conv1.weight" in said
    assert [path.name for path in here.iterdir()] == ["other.pth"]


def test_images_of_other_channels_are_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(create_backbone("resnet_tiny", 3).state_dict(), "mine.pth")
    words = ["--model.pretrained", "mine.pth", "--model.in_channels", "3"]
    with pytest.raises(SystemExit):
        main(["test", "-c", DIGITS, *words])
    assert "Expected images of 3 channels, but the data has 1" in capsys.readouterr().err


def test_without_weights_a_method_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["test", "-c", DIGITS])
    assert "No method was chosen" in capsys.readouterr().err
