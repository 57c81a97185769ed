"""Backbones for other libraries, loaded as their users load them; and the card beside each."""

import contextlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

from duality_ssl import VICReg
from duality_ssl.cli import main
from duality_ssl.runs.export import export

DIGITS = str(Path(__file__).parents[2] / "configs/data/digits.yaml")
SHORT = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2"]


def write_checkpoint(folder: Path, name: str, in_channels: int = 3, **more: Any) -> nn.Module:
    """Write what a fit would, and return its backbone, whose batch norms have statistics."""
    torch.manual_seed(0)
    method = VICReg(backbone=name, projector="8-8", in_channels=in_channels, **more)
    side = more.get("image_size") or 32
    method.backbone(torch.randn(4, in_channels, side, side))
    about = {"backbone": name, "in_channels": in_channels, "image_size": side, "method": "VICReg"}
    about |= {"mean": (0.5,) * in_channels, "std": (0.25,) * in_channels, "step": 7}
    content = {
        "state_dict": method.state_dict(),
        "hyper_parameters": dict(method.hparams),
        "about_backbone": about,
    }
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(content, folder / "last.ckpt")
    return method.backbone.eval()


def load_as_its_card_says(path: Path) -> nn.Module:
    """Run the lines of Python of the card, in the folder of the file."""
    (code,) = re.findall(r"```python\n(.*?)```", Path(f"{path}.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    with contextlib.chdir(path.parent):
        exec(code, names)
    network: nn.Module = names["network"]
    return network.eval()


LIBRARIES = {
    "torchvision": ("resnet18", 3, "torchvision"),
    "timm's resnet for torchvision": ("timm/resnet18", 3, "torchvision"),
    "torchvision's resnet for timm": ("resnet18", 3, "timm"),
    "timm": ("test_resnet", 3, "timm"),
    "timm, grey": ("test_resnet", 1, "timm"),
}


@pytest.mark.parametrize(
    ("name", "channels", "to"),
    [
        *(pytest.param(*case, id=case_id) for case_id, case in LIBRARIES.items()),
        pytest.param("convnext_tiny", 3, "torchvision", id="convnext", marks=pytest.mark.slow),
    ],
)
def test_the_library_computes_the_same_features(
    name: str, channels: int, to: str, tmp_path: Path
) -> None:
    """The lines of the card load the weights into the library's own network, all of them."""
    ours = write_checkpoint(tmp_path, name, channels)
    path = export(tmp_path / "last.ckpt", to)
    network = load_as_its_card_says(path)
    assert type(network).__module__.startswith(f"{to}.")
    same_features(ours, network, torch.randn(3, channels, 32, 32))
    weights = load_file(path) if to == "timm" else torch.load(path, weights_only=True)
    network.load_state_dict(weights, strict=True)
    assert weights.keys() == ours.state_dict().keys()


def test_a_transformer_of_another_size_goes_to_timm(tmp_path: Path) -> None:
    ours = write_checkpoint(tmp_path, "test_vit", 1, image_size=32)
    path = export(tmp_path / "last.ckpt", "timm")
    theirs = timm.create_model(
        "test_vit", checkpoint_path=path, num_classes=0, in_chans=1, img_size=32
    )
    same_features(ours, theirs.eval(), torch.randn(3, 1, 32, 32))
    same_features(ours, load_as_its_card_says(path), torch.randn(3, 1, 32, 32))


def test_torchvision_lacks_only_the_classifier(tmp_path: Path) -> None:
    """Without the lines of the card: a network with its classifier misses that alone."""
    write_checkpoint(tmp_path, "resnet18")
    weights = torch.load(export(tmp_path / "last.ckpt", "torchvision"), weights_only=True)
    missing, unexpected = torchvision.models.resnet18().load_state_dict(weights, strict=False)
    assert (missing, unexpected) == (["fc.weight", "fc.bias"], [])


def same_features(ours: nn.Module, theirs: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        expected = ours(images)
        close = {"rtol": 0, "atol": 1e-5 * expected.abs().max().item()}
        torch.testing.assert_close(theirs(images), expected, **close)


# https://github.com/pytorch/pytorch warns of its own deprecations while it exports
@pytest.mark.filterwarnings("ignore:::torch", "ignore:::onnxscript", "ignore:::copyreg")
def test_onnxruntime_computes_the_same_features_for_any_batch(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import onnxruntime

    ours = write_checkpoint(tmp_path, "resnet_tiny", 1)
    path = export(tmp_path / "last.ckpt", "onnx")
    assert capfd.readouterr() == ("", "")
    session = onnxruntime.InferenceSession(path)
    for n in (1, 5):
        images = torch.randn(n, 1, 32, 32)
        (features,) = session.run(["features"], {"images": images.numpy()})
        same_features(ours, lambda _, found=features: torch.from_numpy(found), images)
    assert session.get_modelmeta().custom_metadata_map["method"] == "VICReg"


REFUSED: dict[str, tuple[str, int, str, str]] = {
    "ours": (
        *("resnet_tiny", 1, "torchvision"),
        "torchvision has no network resnet_tiny. Export it with --to safetensors or --to onnx.",
    ),
    "a small stem": (
        *("resnet18_32", 3, "timm"),
        "timm has no network resnet18_32: its resnet18 has another first layer. Export it with "
        "--to safetensors or --to onnx.",
    ),
    "timm's for torchvision": (
        *("test_resnet", 3, "torchvision"),
        "torchvision has no network test_resnet. Export it with --to timm or --to safetensors or "
        "--to onnx.",
    ),
    "grey for torchvision": (
        *("resnet18", 1, "torchvision"),
        "torchvision's resnet18 takes images of 3 channels, and this backbone takes 1. Export it "
        "with --to timm or --to safetensors or --to onnx.",
    ),
}


CONVNEXT = (
    *("convnext_tiny", 3, "timm"),
    "timm's convnext_tiny has other tensors than this backbone (classifier.0.bias differs). "
    "Export it with --to torchvision or --to safetensors or --to onnx.",
)


@pytest.mark.parametrize(
    ("name", "channels", "to", "said"),
    [
        *(pytest.param(*case, id=case_id) for case_id, case in REFUSED.items()),
        pytest.param(*CONVNEXT, id="torchvision's for timm", marks=pytest.mark.slow),
    ],
)
def test_what_a_library_does_not_know_is_refused(
    name: str, channels: int, to: str, said: str, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path, name, channels)
    with pytest.raises(ValueError, match=re.escape(said)):
        export(tmp_path / "last.ckpt", to)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def describe(folder: Path, **changed: Any) -> None:
    """Have a checkpoint describe its backbone otherwise."""
    content = torch.load(folder / "last.ckpt", weights_only=True)
    content["about_backbone"] |= changed
    content["hyper_parameters"] |= changed
    torch.save(content, folder / "last.ckpt")


def test_a_dotted_path_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path, "resnet_tiny", 1)
    describe(tmp_path, backbone="stranger.network")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "stranger.py").write_text("raise RuntimeError")
    for to in ("torchvision", "timm"):
        with pytest.raises(ValueError, match=r"no network stranger\.network.* --to safetensors\.$"):
            export(tmp_path / "last.ckpt", to)
    with pytest.raises(ValueError, match=r"got 'stranger\.network'"):
        export(tmp_path / "last.ckpt", "onnx")
    path = export(tmp_path / "last.ckpt", "safetensors")
    assert "from stranger import network" in path.with_name(f"{path.name}.md").read_text()


def test_weights_of_another_network_than_described_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "resnet_tiny", 1)
    describe(tmp_path, backbone="test_resnet")
    with pytest.raises(ValueError, match="timm's test_resnet has other tensors"):
        export(tmp_path / "last.ckpt", "timm")
    with pytest.raises(ValueError, match="hold the tensors of test_resnet"):
        export(tmp_path / "last.ckpt", "onnx")
    write_checkpoint(tmp_path, "test_vit", image_size=32)
    describe(tmp_path, image_size=64)
    with pytest.raises(ValueError, match=r"other tensors than this backbone \(pos_embed differs\)"):
        export(tmp_path / "last.ckpt", "timm")


BAD: dict[str, tuple[str, str | None, str]] = {
    "format": ("caffe", None, "to be one of torchvision, timm, safetensors, onnx, but got 'caffe'"),
    "suffix": ("timm", "a.pth", r"a file for timm to end in \.safetensors, but got .*a\.pth"),
    "folder": ("onnx", "", r"a file for onnx to end in \.onnx"),
}


@pytest.mark.parametrize(("to", "name", "said"), BAD.values(), ids=BAD)
def test_bad_arguments_are_named(to: str, name: str | None, said: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "run", "resnet_tiny", 1)
    out = None if name is None else tmp_path / name
    with pytest.raises(ValueError, match=said):
        export(tmp_path / "run/last.ckpt", to, out)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps on the digits, evaluated."""
    folder = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        words = [*SHORT, "--model.warmup_epochs", "0", "--model.covariance", "2"]
        main(["fit", "-c", DIGITS, "--model", "VICReg", *words])
        run = "runs/digits/VICReg/version_0"
        main(["test", "--ckpt_path", run, "--evaluation.few_label_draws", "1"])
    return folder / run


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, "run", copy_function=shutil.copy2)
    return Path("run")


def test_command_writes_the_file_the_report_and_the_card(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        main(["export", str(run), "--to", "safetensors", "--out", "new/mine.safetensors"])
    ours = load_file("new/mine.safetensors")
    theirs = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    left_out = sum(key.startswith("projector.") for key in theirs)
    assert f"Wrote the {len(ours)} tensors of the backbone in run/checkpoints/last.ckpt" in (
        caplog.text
    )
    assert (
        f"without the prefix 'backbone.'. Left out, as pretraining alone uses them: {left_out} of"
        in (caplog.text)
    )
    card = Path("new/mine.safetensors.md").read_text()
    evaluation = json.loads((run / "checkpoints/evaluation.json").read_text())
    assert f"| `linear_top1` | {evaluation['linear_top1']:.4g} |" in card
    assert f"{evaluation['num_train']} training and {evaluation['num_val']} validation" in card
    assert re.search(r"\| `val/probe_top1` \| 0\.\d+ \|", card)
    assert "model.covariance: 2" in card
    assert "trainer.max_epochs: 1" in card
    assert "| checkpoint | `last.ckpt`, step 2, epoch 1 |" in card
    assert "| method | VICReg |" in card
    assert "data.root" not in card


def test_lines_of_the_card_load_the_file(run: Path) -> None:
    main(["export", str(run), "--to", "safetensors"])
    path = (run / "checkpoints/backbone.safetensors").absolute()
    loaded, weights = load_as_its_card_says(path).state_dict(), load_file(path)
    assert all(torch.equal(loaded[key], weights[key]) for key in weights)


def test_scores_of_other_weights_are_left_out_of_the_card(run: Path) -> None:
    checkpoint = run / "checkpoints/last.ckpt"
    checkpoint.touch()
    main(["export", str(run), "--to", "safetensors"])
    assert (
        "is older than the checkpoint"
        in (checkpoint.parent / "backbone.safetensors.md").read_text()
    )
    shutil.copy(checkpoint, checkpoint.with_name("best.ckpt"))
    main(["export", str(checkpoint.with_name("best.ckpt")), "--to", "safetensors"])
    card = (checkpoint.parent / "backbone-best.safetensors.md").read_text()
    assert "There is no offline evaluation" in card
    assert "linear_top1" not in card


def test_a_checkpoint_without_a_run_has_a_card_without_its_config(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "resnet_tiny", 1)
    path = export(tmp_path / "last.ckpt", "safetensors")
    card = Path(f"{path}.md").read_text()
    assert "## Config" not in card
    assert "mean (0.5), std (0.25)" in card


def test_command_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["export", "runs/none", "--to", "timm"])
    assert "There is no checkpoint runs/none" in capsys.readouterr().err
