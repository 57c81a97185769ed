"""Files of strangers: no code in them is run, and one sentence refuses them."""

import ast
import builtins
import io
import pickle
import shutil
import socket
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers.image_files import write_cifar10
from helpers.malicious import CANARY, Touch
from PIL import EpsImagePlugin, Image
from torchvision import datasets

import duality_ssl
from duality_ssl import VICReg
from duality_ssl.cli import main
from duality_ssl.data import create_source
from duality_ssl.networks.backbones import create_backbone
from duality_ssl.networks.weights import export_backbone, load_backbone

PACKAGE = Path(duality_ssl.__file__).parent
DIGITS = str(Path(__file__).parents[2] / "configs/data/digits.yaml")
CHECKPOINTS = Path("runs/digits/VICReg/version_0/checkpoints")
LAST = CHECKPOINTS / "last.ckpt"
SHORT = [
    *("--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "1"),
    *("--trainer.enable_model_summary", "false", "--model.warmup_epochs", "0"),
]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of one step."""
    folder = tmp_path_factory.mktemp("security")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(["fit", "-c", DIGITS, "--model", "VICReg", "--trainer.max_epochs", "1", *SHORT])
    return folder


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder, which Python imports from; no canary at the end."""
    CANARY.unlink(missing_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("DUALITY_SSL_DEBUG", raising=False)
    # makes unpickling torch's default
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    yield tmp_path
    touched = CANARY.exists()
    CANARY.unlink(missing_ok=True)
    assert not touched


@pytest.fixture
def run(template: Path, empty: Path) -> Path:
    """The run, in the working folder."""
    shutil.copytree(template / "runs", "runs")
    return LAST.parents[1]


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence that a command is refused with."""
    with pytest.raises(SystemExit) as done:
        main(words)
    errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert (done.value.code, len(errors)) == (2, 1)
    assert errors[0].startswith("duality-ssl: error: ")
    return errors[0]


# --------------------------------------------------------------------------------------------------
# Pickles


class Built:
    """Pickled, it sets the state of what it made."""

    def __reduce__(self) -> tuple[object, ...]:
        return (SimpleNamespace, (), {"a": Touch()})


SHELL = f"touch {CANARY}".encode()
TEXT = b"\x8c" + bytes([len(SHELL)]) + SHELL
CALLS = {
    **{f"protocol {number}": pickle.dumps(Touch(), number) for number in range(6)},
    "global": b"cos\nsystem\n(S'" + SHELL + b"'\ntR.",
    "stack global": b"\x80\x04\x8c\x02os\x8c\x06system\x93" + TEXT + b"\x85R.",
    "inst": b"(S'" + SHELL + b"'\nios\nsystem\n.",
    "obj": b"(cos\nsystem\nS'" + SHELL + b"'\no.",
    "build": pickle.dumps(Built()),
    "new object": b"\x80\x02csubprocess\nPopen\n(S'touch'\nS'"
    + bytes(CANARY)
    + b"'\nlp0\n\x85\x81.",
    "path of attributes": b"\x80\x04\x8c\x05numpy\x8c\x0ff2py.os.system\x93" + TEXT + b"\x85R.",
    "below an allowed name": b"\x80\x04\x8c\x15numpy.core.multiarray\x8c\x13_reconstruct.system"
    b"\x93" + TEXT + b"\x85R.",
    "persistent id": b"\x80\x02" + pickle.dumps(Touch(), 2)[2:-1] + b"Q.",
    "persistent id, text": b"Pos.system\n.",
    "extension": b"\x80\x02\x82\x01.",
    "codec": b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.",
    # a dtype whose flags deny that its values are pointers, which numpy would believe
    "dtype that lies": b"\x80\x02cnumpy\ndtype\nX\x02\x00\x00\x00V8K\x00K\x01\x87R"
    b"(K\x03X\x01\x00\x00\x00|NX\x01\x00\x00\x00a\x85}X\x01\x00\x00\x00a"
    b"cnumpy\ndtype\nX\x02\x00\x00\x00O8K\x00K\x01\x87RK\x00\x86sK\x08K\x01K\x00tb.",
}


def in_zip(path: Path) -> None:
    """As torch.save writes it, everything else being right."""
    state = create_backbone("resnet_tiny", 1).state_dict()
    torch.save({"state_dict": {f"backbone.{k}": v for k, v in state.items()}, "a": Touch()}, path)


class Subclass(torch.Tensor):
    """A tensor that leaves the canary when it is restored."""

    def __setstate__(self, state: object) -> None:
        CANARY.touch()


def of_subclass(path: Path) -> None:
    torch.save({"state_dict": {"backbone.a": torch.ones(1).as_subclass(Subclass)}}, path)


KINDS: dict[str, Callable[[Path], object]] = {
    "in torch's archive": in_zip,
    "a tensor's subclass": of_subclass,
    **{name: lambda path, call=call: path.write_bytes(call) for name, call in CALLS.items()},
}
of_every_kind = pytest.mark.parametrize("write", KINDS.values(), ids=KINDS)


def test_the_pickles_are_malicious(empty: Path) -> None:
    """A control: Python's own unpickler runs the calls of the table."""
    for name in ("protocol 0", "protocol 5", "global", "stack global", "inst", "obj", "build"):
        pickle.loads(CALLS[name])
        CANARY.unlink()
    for write in (in_zip, of_subclass):
        write(Path("a.ckpt"))
        torch.load("a.ckpt", weights_only=False)
        CANARY.unlink()


@of_every_kind
def test_weights(write: Callable[[Path], object], empty: Path) -> None:
    refuse_weights(write, Path("weights.ckpt"))


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors", ""])
def test_weights_of_any_name(suffix: str, empty: Path) -> None:
    refuse_weights(in_zip, Path(f"weights{suffix}"))


def refuse_weights(write: Callable[[Path], object], path: Path) -> None:
    write(path)
    backbone = create_backbone("resnet_tiny", 1)
    with pytest.raises(ValueError, match="it cannot be read as one"):
        load_backbone(backbone, path)
    with pytest.raises(ValueError, match="it cannot be read as one"):
        export_backbone(path, "out.safetensors")
    assert [*Path().iterdir()] == [path]


@pytest.mark.parametrize("kind", ["in torch's archive", "a tensor's subclass", "protocol 2"])
def test_method_of_a_checkpoint(kind: str, empty: Path) -> None:
    KINDS[kind](Path("last.ckpt"))
    with pytest.raises(ValueError, match="cannot be loaded without running code"):
        VICReg.load_from_checkpoint("last.ckpt")


COMMANDS = ["fit", "validate", "test", "predict"]


@pytest.mark.parametrize(
    ("command", "kind"),
    zip(COMMANDS, ["in torch's archive", "a tensor's subclass", "protocol 2", "inst"], strict=True),
)
def test_checkpoint_on_the_command_line(
    command: str, kind: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    KINDS[kind](LAST)
    said = refused([command, "--ckpt_path", str(run)], capsys)
    assert f"{LAST} (" in said
    assert "cannot be read as a checkpoint" in said


def test_pretrained_on_the_command_line(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    in_zip(Path("weights.pt"))
    words = ["fit", "-c", DIGITS, "--model", "VICReg", *SHORT]
    said = refused([*words, "--model.pretrained", "weights.pt"], capsys)
    assert "Expected weights.pt to be a file of weights, but it cannot be read" in said
    assert not Path("runs").exists()


def test_every_load_is_of_weights_only(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the package, and of Lightning when the package calls it."""
    asked, load = [], torch.load

    def spy(*args: Any, **options: Any) -> Any:
        asked.append(options.get("weights_only"))
        return load(*args, **options)

    monkeypatch.setattr(torch, "load", spy)
    few = ["--trainer.limit_test_batches", "1", "--evaluation.few_label_draws", "1"]
    more = {"fit": ["--trainer.max_epochs", "2"], "test": few}
    for command in COMMANDS:
        before = len(asked)
        main([command, "--ckpt_path", str(run), *more.get(command, [])])
        assert len(asked) > before
    VICReg.load_from_checkpoint(LAST)
    assert asked.count(True) == len(asked)


ADDRESSES = {
    "checkpoint": ["test", "--ckpt_path"],
    "weights": ["fit", "-c", DIGITS, "--model", "VICReg", "--model.pretrained"],
    "config": ["fit", "-c"],
}


@pytest.mark.parametrize("words", ADDRESSES.values(), ids=ADDRESSES)
def test_nothing_is_fetched(
    words: list[str],
    empty: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: CANARY.touch())
    assert "There is no" in refused([*words, "http://localhost/last.ckpt"], capsys)


def test_unpickling_cannot_be_allowed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["predict", "--ckpt_path", str(run), "--weights_only", "false"]
    assert "nothing in a checkpoint is unpickled" in refused(words, capsys)


def test_no_class_is_registered_as_safe_to_unpickle(run: Path) -> None:
    """But those that torch itself registers."""
    modules = {cls.__module__.partition(".")[0] for cls in torch.serialization.get_safe_globals()}
    assert modules <= {"torch"}


ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "instantiator": ({"_instantiator": "os.system"}, "_instantiator|instantiator 'os.system'"),
    "class": ({"_class_path": "stranger.Method"}, "'stranger.Method'"),
    "optimiser": ({"optimizer": {"class_path": "stranger.Optimizer"}}, "'stranger.Optimizer'"),
    "schedule": ({"scheduler": "os.system"}, "'os.system'"),
    "backbone": ({"backbone": "stranger.network"}, "names stranger.network"),
    "backbone that is imported": ({"backbone": "sys.exit"}, "names sys.exit"),
    "backbone below an allowed name": ({"backbone": "lightning.pytorch.cli.sys.exit"}, "sys.exit"),
}


@pytest.mark.parametrize(("arguments", "said"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_arguments_inside_a_checkpoint(
    arguments: dict[str, Any], said: str, run: Path, stranger: Path
) -> None:
    """They are plain strings, which Lightning takes for names of what to import and to call."""
    content = torch.load(LAST, weights_only=True)
    content["hyper_parameters"] |= arguments
    torch.save(content, LAST)
    with pytest.raises(ValueError, match=said):
        VICReg.load_from_checkpoint(LAST)


def test_backbone_that_the_user_names_is_imported(run: Path, stranger: Path) -> None:
    content = torch.load(LAST, weights_only=True)
    content["hyper_parameters"]["backbone"] = "stranger.network"
    torch.save(content, LAST)
    method = VICReg.load_from_checkpoint(LAST, backbone="stranger.network")
    assert method.in_channels == 1
    CANARY.unlink()


def test_name_of_a_backbone_is_no_path(stranger: Path) -> None:
    """An exported file says which network its weights are of, for `create_backbone`."""
    with pytest.raises(ValueError, match="Expected `backbone`"):
        create_backbone("stranger.network", 1)


STATES: dict[str, str] = {
    "a folder elsewhere": "../../../../../precious",
    "the run itself": "..",
    "a file beside it": "precious.ckpt",
}


@pytest.mark.parametrize("target", STATES.values(), ids=STATES)
def test_paths_inside_a_checkpoint(target: str, run: Path) -> None:
    """A checkpoint says which file was the best, and that one is deleted when there is a better."""
    for precious in (Path("precious"), CHECKPOINTS / "precious.ckpt"):
        precious.mkdir()
    content = torch.load(LAST, weights_only=True)
    (name,) = [name for name in content["callbacks"] if name.startswith("BestCheckpoint")]
    state, path = content["callbacks"][name], str(CHECKPOINTS / target)
    worst = torch.tensor(-1.0)
    paths = {"best_model_path": path, "kth_best_model_path": path}
    state |= {**paths, "best_k_models": {path: worst}, "kth_value": worst}
    torch.save(content, LAST)
    more = ["--trainer.max_epochs", "2", "--best_checkpoint.monitor", "val/rankme"]
    del content["callbacks"][name]
    content["callbacks"][name.replace("val/probe_top1", "val/rankme")] = state
    torch.save(content, LAST)
    main(["fit", "--ckpt_path", str(run), *more])
    assert Path("precious").is_dir()
    assert (CHECKPOINTS / "precious.ckpt").is_dir()
    assert (run / "config.yaml").is_file()


def test_attributes_inside_a_checkpoint(run: Path) -> None:
    """What is restored of the metrics is that, and no other attribute of the trainer."""
    content = torch.load(LAST, weights_only=True)
    content["exact_resume"]["metrics"]["__dict__"] = {"fit_loop": None, "_default_root_dir": "/"}
    torch.save(content, LAST)
    main(["fit", "--ckpt_path", str(run), "--trainer.max_epochs", "2"])


# --------------------------------------------------------------------------------------------------
# Configs


@pytest.fixture
def stranger(empty: Path) -> Iterator[Path]:
    """A module that leaves the canary when it is imported; that it can be is to be seen first."""
    module = empty / "stranger.py"
    module.write_text(
        f"from pathlib import Path\nPath({str(CANARY)!r}).touch()\n"
        "import lightning, torch\n"
        "class Optimizer(torch.optim.SGD): pass\n"
        "class Callback(lightning.Callback): pass\n"
        "def call(*args): return None\n"
        "from duality_ssl.networks.backbones import resnet_tiny as network\n"
        "from duality_ssl.data.sources import Digits as Source\n"
    )
    yield module
    sys.modules.pop("stranger", None)


def of(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": name, "init_args": arguments}


LAMBDA = "lightning.pytorch.callbacks.LambdaCallback"
NAMED: dict[str, tuple[str, Any, str]] = {
    "method": ("model", of("stranger.Method"), "stranger.Method"),
    "optimiser": ("model.init_args.optimizer", of("stranger.Optimizer"), "stranger.Optimizer"),
    "optimiser in a file": ("model.init_args.optimizer", "named.yaml", "model.optimizer"),
    "optimiser in escapes": (
        "model.init_args.optimizer",
        '{"class_path": "\\u0073tranger.Optimizer"}',
        "stranger.Optimizer",
    ),
    "schedule": ("model.init_args.scheduler", "stranger.call", "stranger.call"),
    "schedule of the system": ("model.init_args.scheduler", "os.system", "os.system"),
    "callbacks": ("trainer.callbacks", [of("stranger.Callback")], "stranger.Callback"),
    "callback that calls": (
        "trainer.callbacks",
        [of(LAMBDA, setup="lightning.pytorch.seed_everything")],
        "LambdaCallback",
    ),
    **{
        option: (f"trainer.{option}", of("stranger.Callback"), "stranger.Callback")
        for option in ("logger", "plugins")
    },
    "source": ("data.source", "stranger.Source", "stranger.Source"),
    "backbone": ("model.init_args.backbone", "stranger.network", "stranger.network"),
    "backbone of the system": ("model.init_args.backbone", "os.abort", "os.abort"),
    "permission to unpickle": ("weights_only", False, "nothing in a checkpoint is unpickled"),
    "where no class belongs": ("data.subset", of("stranger.Callback"), "data.subset"),
    "in a number": ("model.init_args.covariance", of("stranger.Callback"), "model.covariance"),
}


def write_config(run: Path, option: str, value: Any) -> Path:
    """The config of the run with another value."""
    path = run / "config.yaml"
    config = yaml.safe_load(path.read_text())
    *groups, name = option.split(".")
    inner = config
    for group in groups:
        inner = inner[group]
    inner[name] = value
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.parametrize(("option", "value", "said"), NAMED.values(), ids=NAMED)
def test_config_beside_a_checkpoint_names_no_module(
    option: str,
    value: Any,
    said: str,
    run: Path,
    stranger: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("named.yaml").write_text("class_path: stranger.Optimizer")
    write_config(run, option, value)
    assert said in refused(["predict", "--ckpt_path", str(run)], capsys)
    assert "stranger" not in sys.modules


def test_config_of_the_last_run_names_no_module(
    run: Path, stranger: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_config(run, "trainer.callbacks", [of("stranger.Callback")])
    words = ["fit", "-c", DIGITS, "--model", "VICReg", "--ckpt_path", "last"]
    assert "stranger.Callback" in refused(words, capsys)


TRUSTED: dict[str, list[str]] = {
    "by its name": ["--trainer.callbacks+", "stranger.Callback"],
    "by its file": ["-c", "runs/digits/VICReg/version_0/config.yaml"],
}


@pytest.mark.parametrize("words", TRUSTED.values(), ids=TRUSTED)
def test_what_the_user_names_is_imported(words: list[str], run: Path, stranger: Path) -> None:
    """A control: the same config runs code if the user passes or names it."""
    write_config(run, "trainer.callbacks", [of("stranger.Callback")])
    main(["predict", *words, "--ckpt_path", str(run)])
    CANARY.unlink()


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("data.source", "Source"),
        ("data.probe_source", "Source"),
        ("model.init_args.backbone", "network"),
    ],
)
def test_dotted_path_that_the_user_names_is_imported(
    option: str, name: str, run: Path, stranger: Path
) -> None:
    write_config(run, option, f"stranger.{name}")
    again = f"--{option.replace('init_args.', '')}"
    main(["predict", "--ckpt_path", str(run), again, f"stranger.{name}"])
    CANARY.unlink()


def test_what_one_command_refuses_the_next_may_name(
    run: Path, stranger: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one process, as in a notebook."""
    path = write_config(run, "trainer.callbacks", [of("stranger.Callback")])
    refused(["predict", "--ckpt_path", str(run)], capsys)
    copied = shutil.copy(path, "mine.yaml")
    main(["fit", "-c", copied, "--trainer.fast_dev_run", "true"])
    CANARY.unlink()


TAGS = {
    "apply": f"!!python/object/apply:os.system ['touch {CANARY}']",
    "object": "!!python/object:stranger.Callback {}",
}


@pytest.mark.parametrize("place", ["-c", "run"])
@pytest.mark.parametrize("tag", TAGS.values(), ids=TAGS)
def test_tags_of_yaml(
    tag: str, place: str, run: Path, stranger: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path("mine.yaml") if place == "-c" else run / "config.yaml"
    path.write_text(f"seed_everything: {tag}\n")
    words = ["-c", "mine.yaml"] if place == "-c" else ["--ckpt_path", str(run)]
    said = refused(["fit", *words], capsys)
    assert f"{path.name} is not valid YAML" in said


# --------------------------------------------------------------------------------------------------
# Data


@pytest.mark.parametrize("name", ["data_batch_1", "test_batch", "batches.meta"])
def test_pickled_data(name: str, empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with another checksum than the published one is not unpickled."""
    monkeypatch.setattr(datasets, "CIFAR10", write_cifar10(Path("data")))
    Path("data/cifar-10-batches-py", name).write_bytes(CALLS["protocol 2"])
    with pytest.raises(FileNotFoundError, match="missing or damaged"):
        create_source("cifar10", "data").load("val")


@pytest.mark.filterwarnings(r"ignore:\w+ is off")  # the images have no labels
def test_postscript_is_no_image(
    empty: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever its name: Pillow has another program run it."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: CANARY.touch())
    Path("photos").mkdir()
    for number in range(4):
        Image.new("RGB", (20, 20)).save(f"photos/{number}.png", format="EPS")
    words = ["fit", "--model", "VICReg", "--data.source", "folder", "--data.root", "photos"]
    small = ["--model.backbone", "resnet_tiny", "--model.projector", "8-8"]
    small += ["--data.image_size", "8", "--model.warmup_epochs", "0"]
    said = refused([*words, *small, "--data.batch_size", "2", "--trainer.max_epochs", "1"], capsys)
    assert "Cannot read the image" in said


def test_code_in_a_data_folder_is_no_image(empty: Path) -> None:
    Path("photos").mkdir()
    touch = f"from pathlib import Path; Path({str(CANARY)!r}).touch()"
    for name in ("__init__.py", "conftest.py", "sitecustomize.py", "a.png.py"):
        Path("photos", name).write_text(touch)
    Image.new("RGB", (20, 20)).save("photos/0.png")
    assert len(create_source("folder", "photos").load("pretrain")) == 1


def test_features_hold_no_pickle(run: Path) -> None:
    """What `predict` writes, numpy reads without one; and an array of objects it does not."""
    main(["predict", "--ckpt_path", str(run)])
    with zipfile.ZipFile(CHECKPOINTS / "features.npz") as archive:
        headers = [archive.read(name)[:128] for name in archive.namelist()]
    assert headers
    assert not [header for header in headers if b"'O'" in header or b"|O" in header]
    np.savez("strange.npz", features=np.array([Touch()]), allow_pickle=True)
    with np.load("strange.npz") as file, pytest.raises(ValueError, match="allow_pickle"):
        file["features"]


# --------------------------------------------------------------------------------------------------
# Archives


def members() -> dict[str, tarfile.TarInfo]:
    """What an archive may hold that is to be unpacked outside of a folder."""
    found = {name: tarfile.TarInfo(name) for name in ("../outside", "a/../../outside")}
    found["absolute"] = tarfile.TarInfo(str(CANARY))
    link = found["link"] = tarfile.TarInfo("storages")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    hard = found["hard link"] = tarfile.TarInfo("tensors")
    hard.type, hard.linkname = tarfile.LNKTYPE, "../outside"
    device = found["device"] = tarfile.TarInfo("pickle")
    device.type, device.devmajor, device.devminor = tarfile.CHRTYPE, 1, 5
    return found


MEMBERS = ["../outside", "a/../../outside", "absolute", "link", "hard link", "device"]


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("form", ["tar", "tar.gz"])
def test_nothing_is_unpacked(name: str, form: str, empty: Path) -> None:
    inside = Path("inside")
    inside.mkdir()
    with tarfile.open(
        inside / "cifar-10-python.tar.gz", "w:gz" if form == "tar.gz" else "w"
    ) as tar:
        tar.addfile(members()[name], io.BytesIO())
    for suffix in (".pt", ".ckpt"):
        copied = shutil.copy(inside / "cifar-10-python.tar.gz", inside / f"weights{suffix}")
        with pytest.raises(ValueError, match="cannot be read"):
            load_backbone(create_backbone("resnet_tiny", 1), copied)
    with pytest.raises(FileNotFoundError, match="Expected CIFAR10 in"):
        create_source("cifar10", "inside").load("val")
    assert {each.name for each in empty.rglob("*")} == {
        *("inside", "cifar-10-python.tar.gz", "weights.pt", "weights.ckpt")
    }


NAMES = ["../outside", str(CANARY), "archive/../../outside"]


@pytest.mark.parametrize("name", NAMES, ids=["above", "absolute", "by a detour"])
def test_members_of_a_checkpoint_are_not_unpacked(name: str, run: Path) -> None:
    with zipfile.ZipFile(LAST, "a") as archive:
        archive.writestr(name, "outside")
    before = {*Path().rglob("*")}
    with suppress(SystemExit):  # torch refuses some of these names
        main(["predict", "--ckpt_path", str(run)])
    assert {path.name for path in {*Path().rglob("*")} - before} <= {"features.npz"}
    assert not (Path.cwd().parent / "outside").exists()


# --------------------------------------------------------------------------------------------------
# The source: what could run a file is not called

RUNNERS = {
    *("eval", "exec", "compile", "__import__", "importlib.import_module", "runpy.run_path"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "pickle._Unpickler"),
    *("torch.hub.load", "torch.jit.load", "torch.package.PackageImporter", "torch.load"),
    *("torch.serialization.add_safe_globals", "torch.serialization.safe_globals"),
    *("numpy.load", "numpy.fromregex", "numpy.ctypeslib.load_library", "pandas.read_pickle"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "yaml.Loader"),
    *("os.system", "os.popen", "os.execv", "os.execvp", "os.spawnv", "os.posix_spawn"),
    *("subprocess.run", "subprocess.call", "subprocess.Popen", "subprocess.check_call"),
    *("subprocess.check_output", "subprocess.getoutput", "shutil.unpack_archive"),
}
RUNNING_MODULES = {"dill", "joblib", "shelve", "marshal", "cloudpickle", "tarfile", "runpy"}
UNPACKING = {"extract", "extractall"}

# each with what keeps it harmless
EXPECTED = {
    ("callbacks/frozen.py", "numpy.load"),  # with allow_pickle=False
    ("__init__.py", "importlib.import_module"),  # of the package's own parts
    ("runs/preemption.py", "subprocess.run"),  # of SLURM's scontrol, and no shell
    ("runs/config.py", "yaml.load"),  # with a loader that is safe, and stricter
}


def running(source: str) -> set[str]:
    """What in a source could run a file: dotted names, by whatever name they were imported."""
    tree = ast.parse(source)
    names: dict[str, str] = {}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & RUNNING_MODULES
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} & RUNNING_MODULES
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    called = {id(call.func) for call in calls}
    told = {
        id(call.func)
        for call in calls
        if any(w.arg == "weights_only" and ast.unparse(w.value) == "True" for w in call.keywords)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Name | ast.Attribute) or id(node) in told:
            continue
        root, dot, rest = ast.unparse(node).partition(".")
        name = names.get(root, root) + dot + rest
        # what an argument or a method may be called too
        if name in RUNNERS and (name not in dir(builtins) or id(node) in called):
            found.add(name)
        if isinstance(node, ast.Attribute) and node.attr in UNPACKING:
            found.add(node.attr)
    return found


def test_the_package_runs_no_file() -> None:
    found = {
        (str(path.relative_to(PACKAGE)), name)
        for path in PACKAGE.rglob("*.py")
        for name in running(path.read_text(encoding="utf-8"))
    }
    assert found == EXPECTED


SOURCES_THAT_RUN = {
    "import torch\ntorch.load(path)": "torch.load",
    "import torch\ntorch.load(path, weights_only=False)": "torch.load",
    "import torch as t\nt.load(path, weights_only=safe)": "torch.load",
    "from torch import load\nload(path)": "torch.load",
    "import numpy as np\nnp.load(path, allow_pickle=True)": "numpy.load",
    "import pickle\nwith path.open('rb') as file: pickle.load(file)": "pickle.load",
    "from pickle import loads as read\nread(b'')": "pickle.loads",
    "import yaml\nyaml.load(text, yaml.Loader)": "yaml.load",
    "eval(text)": "eval",
    "from subprocess import run as do\ndo('ls')": "subprocess.run",
    "import os\nos.system('ls')": "os.system",
    "import shutil\nshutil.unpack_archive(path)": "shutil.unpack_archive",
    "import zipfile\nzipfile.ZipFile(path).extractall()": "extractall",
    "from importlib import import_module as of\nof(name)": "importlib.import_module",
}


@pytest.mark.parametrize(
    ("source", "name"), SOURCES_THAT_RUN.items(), ids=SOURCES_THAT_RUN.values()
)
def test_the_look_at_the_source_sees(source: str, name: str) -> None:
    assert name in running(source)
    assert running("import torch\ntorch.load(path, weights_only=True)") == set()
