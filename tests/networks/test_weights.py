"""Backbone weights from files, of every kind and with every fault, and to a file of their own."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models import convnext_tiny, resnet18

from duality_ssl.callbacks import BackboneWriter
from duality_ssl.cli import main
from duality_ssl.networks.backbones import create_backbone
from duality_ssl.networks.weights import export_backbone, load_backbone, save_backbone

State = dict[str, Tensor]


def backbone(seed: int, in_channels: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return create_backbone("resnet_tiny", in_channels=in_channels)


def behind(prefix: str, state: State) -> State:
    return {prefix + key: tensor for key, tensor in state.items()}


def contiguous(state: State) -> State:
    return {key: tensor.contiguous() for key, tensor in state.items()}


WRITERS: dict[str, tuple[str, Callable[[State, Path], None]]] = {
    "bare": ("w.pt", lambda state, path: torch.save(state, path)),
    "ddp": ("w.pth", lambda state, path: torch.save(behind("module.", state), path)),
    "run": (
        "last.ckpt",
        lambda state, path: torch.save(
            {"state_dict": behind("backbone.", state), "epoch": 3}, path
        ),
    ),
    "safetensors": ("w.safetensors", lambda state, path: save_file(contiguous(state), path)),
    "under a name": (
        "w.pth",
        lambda state, path: torch.save({"model": behind("module.backbone.", state)}, path),
    ),
    "without counts": (
        "w.pt",
        lambda state, path: torch.save(
            {key: tensor for key, tensor in state.items() if "num_batches" not in key}, path
        ),
    ),
    "with a classifier": (
        "w.pt",
        lambda state, path: torch.save({**state, "fc.weight": torch.zeros(10, 128)}, path),
    ),
}


@pytest.mark.parametrize(("name", "write"), WRITERS.values(), ids=WRITERS)
def test_weights_arrive(name: str, write: Callable[[State, Path], None], tmp_path: Path) -> None:
    source, target = backbone(0), backbone(1)
    write(source.state_dict(), tmp_path / name)
    load_backbone(target, tmp_path / name)
    for key, tensor in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], tensor)


class Malicious:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return (Path.touch, (Path("touched"),))  # type: ignore[return-value]


def truncated(state: State, path: Path) -> None:
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:1000])


FAULTS: dict[str, tuple[str, Callable[[State, Path], object], str]] = {
    "missing tensor": (
        "w.pt",
        lambda state, path: torch.save(dict([*state.items()][1:]), path),
        "1 are missing, stem.0.weight first",
    ),
    "other shape": (
        "w.pt",
        lambda state, path: torch.save(backbone(0, in_channels=3).state_dict(), path),
        r"stem.0.weight of .*w.pt to have shape \(32, 1, 3, 3\), but got \(32, 3, 3, 3\)",
    ),
    "other network": (
        "w.pt",
        lambda state, path: torch.save(nn.Linear(2, 2).state_dict(), path),
        "are missing",
    ),
    "no tensor": ("w.pt", lambda state, path: torch.save({"a": 1}, path), "holds no named tensor"),
    "no dictionary": ("w.pt", lambda state, path: torch.save([1], path), "holds no named tensor"),
    "no names": (
        "w.pt",
        lambda state, path: torch.save({1: torch.ones(1)}, path),
        "no named tensor",
    ),
    "odd bytes": ("w.pt", lambda state, path: path.write_bytes(b"\x80\x02."), "cannot be read"),
    "truncated": ("w.pt", truncated, "cannot be read"),
    "empty": ("w.pt", lambda state, path: path.touch(), "cannot be read"),
    "text": ("w.pt", lambda state, path: path.write_text("weights"), "cannot be read"),
    "not safetensors": (
        "w.safetensors",
        lambda state, path: path.write_text("weights"),
        "cannot be read",
    ),
    "malicious": (
        "w.pt",
        lambda state, path: path.write_bytes(pickle.dumps(Malicious())),
        "cannot be read",
    ),
}


@pytest.mark.parametrize(("name", "write", "said"), FAULTS.values(), ids=FAULTS)
def test_fault_is_named_and_nothing_changes(
    name: str,
    write: Callable[[State, Path], object],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    target = backbone(1)
    before = {key: tensor.clone() for key, tensor in target.state_dict().items()}
    write(backbone(0).state_dict(), tmp_path / name)
    with pytest.raises(ValueError, match=said):
        load_backbone(target, tmp_path / name)
    assert not Path("touched").exists()
    assert all(torch.equal(before[key], tensor) for key, tensor in target.state_dict().items())


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no file of weights .*none\.ckpt"):
        load_backbone(backbone(0), tmp_path / "none.ckpt")


def torchvision_resnet18(in_channels: int) -> nn.Module:
    """Torchvision's own, without a classifier, which no pretraining has."""
    network = resnet18()
    network.fc = nn.Identity()
    if in_channels != 3:
        network.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
    return network


def torchvision_convnext(in_channels: int) -> nn.Module:
    network = convnext_tiny()
    network.classifier[-1] = nn.Identity()
    return network


def of_timm(name: str) -> Callable[[int], nn.Module]:
    return lambda in_channels: timm.create_model(name, num_classes=0, in_chans=in_channels)


OWN: dict[str, tuple[str, int, Callable[[int], nn.Module]]] = {
    "torchvision": ("resnet18", 3, torchvision_resnet18),
    "torchvision, grey": ("resnet18", 1, torchvision_resnet18),
    "torchvision's convnext": ("convnext_tiny", 3, torchvision_convnext),
    "timm": ("test_resnet", 3, of_timm("test_resnet")),
    "timm, grey": ("test_resnet", 1, of_timm("test_resnet")),
    "timm's transformer": ("test_vit", 1, of_timm("test_vit")),
    "ours": ("resnet_tiny", 1, lambda channels: create_backbone("resnet_tiny", channels)),
}


@pytest.mark.parametrize(("name", "channels", "build"), OWN.values(), ids=OWN)
def test_saved_backbone_is_that_of_its_own_library(
    name: str, channels: int, build: Callable[[int], nn.Module], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    source = create_backbone(name, channels).to(memory_format=torch.channels_last)
    size = getattr(source, "default_cfg", {}).get("input_size", (3, 32, 32))[1]
    images = torch.randn(2, channels, size, size)
    source(images)  # batch norms have statistics of their own
    path = tmp_path / "new" / "backbone.safetensors"
    save_backbone(source.state_dict(), path)
    ours, theirs = create_backbone(name, channels), build(channels)
    load_backbone(ours, path)
    theirs.load_state_dict(load_file(path), strict=True)
    with torch.no_grad():
        expected, *features = (
            # a convolution rounds differently where its weights have another order in memory
            network.eval().to(memory_format=torch.contiguous_format)(images)
            for network in (source, ours, theirs)
        )
    assert expected.shape == (2, source.num_features)
    assert all(torch.equal(each, expected) for each in features)


DIGITS = str(Path(__file__).parents[2] / "configs/data/digits.yaml")


def fit(*words: str) -> None:
    short = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2"]
    cold = ["--model.warmup_epochs", "0"]
    main(["fit", "-c", DIGITS, "--model", "VICReg", *short, *cold, *words])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of a run of two steps."""
    folder = tmp_path_factory.mktemp("weights")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fit()
    return folder / "runs/digits/VICReg/version_0/checkpoints"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def about(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_a_fit_leaves_its_backbone_and_what_it_needs(run: Path) -> None:
    said = about(run / "backbone.safetensors")
    texts = {"format": "pt", "backbone": "resnet_tiny", "method": "VICReg"}
    numbers = {"in_channels": 1, "image_size": 16, "mean": [0.3054], "std": [0.376], "step": 2}
    assert {key: text for key, text in said.items() if key in texts} == texts
    assert {key: json.loads(text) for key, text in said.items() if key not in texts} == numbers
    states = torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
    weights = behind("backbone.", load_file(run / "backbone.safetensors"))
    assert weights.keys() == {key for key in states if key.startswith("backbone.")}
    assert all(torch.equal(states[key], weight) for key, weight in weights.items())


def test_export_of_a_checkpoint_is_what_the_fit_left(run: Path, tmp_path: Path) -> None:
    exported, left = tmp_path / "new" / "mine.safetensors", run / "backbone.safetensors"
    export_backbone(run / "last.ckpt", exported)
    assert about(exported) == about(left)
    ours, theirs = load_file(exported), load_file(left)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_fit_starts_from_the_file(run: Path, here: Path) -> None:
    with pytest.warns(UserWarning, match="the learning rate is 0"):
        fit("--model.pretrained", str(run / "backbone.safetensors"), "--model.base_lr", "0")
    ours = load_file("runs/digits/VICReg/version_0/checkpoints/backbone.safetensors")
    theirs = load_file(run / "backbone.safetensors")
    learnt = [key for key in ours if "running" not in key and "num_batches" not in key]
    assert len(learnt) > 20
    assert all(torch.equal(ours[key], theirs[key]) for key in learnt)


NONE = {
    "left out": ["--without", "[backbone]"],
    "no checkpoints": ["--trainer.enable_checkpointing", "false"],
    "tried only": ["--trainer.fast_dev_run", "true"],
}


@pytest.mark.parametrize("words", NONE.values(), ids=NONE)
def test_no_file_where_none_is_wanted(words: list[str], here: Path) -> None:
    fit(*words)
    assert not list(here.rglob("*.safetensors"))


def test_only_the_first_process_writes(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("duality_ssl.runs.backbone.rank", lambda: 1)
    fit()
    assert list(here.rglob("last.ckpt"))
    assert not list(here.rglob("*.safetensors"))


def test_a_full_disk_fails_the_file_alone(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("duality_ssl.networks.weights.write_atomically", full)
    with pytest.warns(UserWarning, match=r"cannot be written to .*\.safetensors: .*No space"):
        fit()
    assert list(here.rglob("last.ckpt"))


@pytest.mark.parametrize("name", ["backbone.pt", "../backbone.safetensors", "a/b.safetensors", ""])
def test_a_name_that_leaves_the_folder_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"`backbone\.filename` to be a NAME\.safetensors"):
        BackboneWriter(name)


NO_RUNS = {
    "others": ({"state_dict": {"a": torch.ones(1)}}, "of a run, but it holds no backbone"),
    "number": ({"state_dict": 1}, "no named tensor"),
    "list": ([1], "no named tensor"),
}


@pytest.mark.parametrize(("content", "said"), NO_RUNS.values(), ids=NO_RUNS)
def test_what_is_no_checkpoint_is_not_exported(content: object, said: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=rf"a\.ckpt to .*{said}"):
        export_backbone(tmp_path / "a.ckpt", tmp_path / "b.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


def test_metadata_of_a_strange_checkpoint_stay_text(tmp_path: Path) -> None:
    """What it says of the backbone is written down, and nothing is made of it."""
    said = {"mean": torch.ones(1), "std": {1: (2, 3)}, 7: "seven", "step": None}
    state = {"backbone.a": torch.ones(2)}
    torch.save({"state_dict": state, "about_backbone": said}, tmp_path / "a")
    export_backbone(tmp_path / "a", tmp_path / "b.safetensors")
    expected = {"mean": '"tensor([1.])"', "std": '{"1": [2, 3]}', "7": "seven", "format": "pt"}
    assert about(tmp_path / "b.safetensors") == expected
