"""Options that follow from the images, on the command line: what wins, and what is resumed."""

import logging
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.image_files import write_folder, write_image
from helpers.parsing import parsed

from duality_ssl.cli import main
from duality_ssl.runs.resume import flatten

CONFIGS = Path(__file__).parents[2] / "configs"
FOLDER = ["-c", str(CONFIGS / "data/folder.yaml"), "--model", "VICReg", "--data.root", "images"]
SHORT = [
    *("--trainer.max_epochs", "1", "--model.warmup_epochs", "0", "--data.image_size", "16"),
    *("--model.projector", "8-8", "--trainer.limit_train_batches", "1", "--trainer.accelerator"),
    *("cpu", "--trainer.enable_model_summary", "false", "--trainer.precision", "32"),
]


@pytest.fixture(autouse=True)
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of 12 images to train on."""
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "images")
    return tmp_path / "images"


def options(*words: str) -> dict[str, Any]:
    return flatten(parsed(*words).options.as_dict())


def test_options_follow_from_the_images(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        found = options("fit", *FOLDER, "--trainer.accelerator", "cpu")
    assert found["data.batch_size"] == 4
    assert found["model.backbone"] == "resnet_tiny"
    assert found["model.optimizer.class_path"] == "torch.optim.AdamW"
    assert found["data.view1.scale"] == [0.4, 1.0]
    assert "Chosen for 12 images of about 38 pixels" in caplog.text
    assert "AdamW" in caplog.text


def test_what_the_user_sets_wins(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Path("mine.yaml").write_text("data: {batch_size: 3, view1: {blur: 0.2}}\n")
    words = ["-c", "mine.yaml", "--model.optimizer", "SGD", "--trainer.max_epochs", "7"]
    with caplog.at_level(logging.INFO):
        found = options("fit", *FOLDER, *words)
    assert (found["data.batch_size"], found["trainer.max_epochs"]) == (3, 7)
    assert (found["data.view1.blur"], found["data.view1.scale"]) == (0.2, [0.4, 1.0])
    assert found["model.optimizer.class_path"] == "torch.optim.SGD"
    for name in ("data.batch_size", "trainer.max_epochs", "data.view1.blur", "model.optimizer "):
        assert name not in caplog.text


def test_recipe_none_chooses_nothing() -> None:
    found = options("fit", *FOLDER, "--recipe", "none")
    assert (found["data.batch_size"], found["model.backbone"]) == (256, "resnet50")


def test_an_untrained_network_is_that_of_the_recipe() -> None:
    assert options("test", *FOLDER, "--trainer.accelerator", "cpu")["data.batch_size"] == 4


def test_a_missing_folder_is_named_as_before(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", *FOLDER[:-1], "nowhere"])
    assert "there is no folder `nowhere`" in capsys.readouterr().err


def test_data_in_memory_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", *FOLDER, "--data.source", "digits"])
    assert "Expected a source of image files for --recipe auto" in capsys.readouterr().err


def test_a_resumed_run_keeps_the_choices(images: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        main(["fit", *FOLDER, *SHORT])
    assert "The fit takes about " in caplog.text
    (run,) = Path("runs/folder/VICReg").iterdir()
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["recipe"], config["data"]["batch_size"]) == ("auto", 4)
    for i in range(40):
        write_image(images / "train" / "cat" / f"new_{i}.png")
    caplog.clear()
    longer = [*SHORT, "--trainer.max_epochs", "2", "--ckpt_path"]
    for checkpoint in ("last", str(run)):
        found = options("fit", *FOLDER, *longer, checkpoint)
        assert found["data.batch_size"] == 4
    assert "Chosen" not in caplog.text
    assert options("fit", *FOLDER, *SHORT)["data.batch_size"] == 16  # a new run
