"""Backbone weights from files: of every kind, and with every fault."""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from duality_ssl.backbones import create_backbone
from duality_ssl.weights import load_backbone

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
