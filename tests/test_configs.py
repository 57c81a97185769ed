"""Every config parses and repeats no default; every method trains on every offline set."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml

from duality_ssl import methods
from duality_ssl.cli import main
from duality_ssl.cli.command import method_names
from duality_ssl.data import SSLDataModule

CONFIGS = Path(__file__).parents[1] / "configs"
METHODS = sorted(CONFIGS.glob("methods/*.yaml"))
DATA = sorted(CONFIGS.glob("data/*.yaml"))
DIGITS = CONFIGS / "data/digits.yaml"
FASHION_MNIST = CONFIGS / "data/fashion_mnist.yaml"
# tests/sweeps reads those of sweeps
OF_FITS = [path for path in sorted(CONFIGS.glob("*/*.yaml")) if path.parent.name != "sweeps"]


def ids(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def parse(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """The resolved config, as ``--print_config`` shows it."""
    with pytest.raises(SystemExit) as done:
        main(["fit", *words, "--print_config"])
    assert done.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize("path", OF_FITS, ids=ids)
def test_config_parses_and_every_value_arrives(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = parse(capsys, "--model", "VICReg", "-c", str(path))

    def check(written: Any, resolved: Any) -> None:
        if isinstance(written, dict):
            for key, value in written.items():
                check(value, resolved[key])
        elif isinstance(written, str) and isinstance(resolved, str):
            assert resolved.endswith(written)
        else:
            assert resolved == written or float(resolved) == float(written)

    check(yaml.safe_load(path.read_text()), config)


def test_every_method_has_a_config() -> None:
    configured = {yaml.safe_load(path.read_text())["model"]["class_path"] for path in METHODS}
    assert configured == set(method_names())


@pytest.mark.parametrize("path", [*METHODS, *DATA, CONFIGS / "optimizers/vit.yaml"], ids=ids)
def test_config_says_no_default_again(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    model, data = config.get("model", {}), config.get("data", {})
    method = getattr(methods, model.get("class_path", "VICReg"))
    for signature, written in ((method, model.get("init_args", {})), (SSLDataModule, data)):
        parameters = inspect.signature(signature).parameters
        for name, value in written.items():
            assert parameters[name].default != value or name == "source"


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)], ids=str)
def test_configs_merge_in_any_order(
    order: tuple[int, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["data/digits.yaml", "methods/dcl_sq.yaml", "hardware/cpu.yaml"]
    words = [word for i in order for word in ("-c", str(CONFIGS / files[i]))]
    config = parse(capsys, *words)
    assert config["model"]["class_path"] == "duality_ssl.DCL"
    assert config["model"]["init_args"]["similarity"] == "squared"
    assert config["model"]["init_args"]["backbone"] == "resnet_tiny"
    assert config["trainer"]["accelerator"] == "cpu"
    assert config["data"]["source"] == "digits"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-c", "data/digits.yaml", "--model", "BYOL"], ("4096-d", 0.99)),
        (["-c", "data/digits.yaml", "-c", "methods/byol.yaml"], ("4096-d", 0.99)),
        (["-c", "methods/byol.yaml", "-c", "methods/vicreg.yaml"], (None, None)),
        (["-c", "methods/byol.yaml", "--model=VICReg"], (None, None)),
    ],
    ids=["option", "config", "other config", "other option"],
)
def test_defaults_are_those_of_the_method_that_is_named_last(
    words: list[str], expected: tuple[Any, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(CONFIGS / word) if word.endswith(".yaml") else word for word in words]
    model = parse(capsys, *given)["model"]["init_args"]
    assert (model["predictor"], model["teacher_momentum"]) == expected


@pytest.mark.parametrize("data", ["digits", "cifar10", "imagenet"])  # AdamW, SGD, LARS
@pytest.mark.filterwarnings("error")
def test_transformer_recipe_replaces_the_optimizer_of_the_data(
    data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [f"data/{data}.yaml", "optimizers/vit.yaml"]
    config = parse(capsys, *(word for file in files for word in ("-c", str(CONFIGS / file))))
    model = config["model"]["init_args"]
    assert model["optimizer"]["class_path"] == "torch.optim.AdamW"
    assert "momentum" not in model["optimizer"]["init_args"]
    assert (model["base_lr"], model["weight_decay"]) == (1.5e-4, 0.1)
    assert config["trainer"]["gradient_clip_val"] == 1


@pytest.mark.parametrize(
    ("method", "data"),
    [*((method, DIGITS) for method in METHODS), (METHODS[0], FASHION_MNIST)],
    ids=ids,
)
def test_every_method_and_offline_set_trains(
    method: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if data == FASHION_MNIST and not Path("/usr/share/datasets/fashion-mnist").is_dir():
        pytest.skip("needs Debian's dataset-fashion-mnist, which .ci/run installs")
    monkeypatch.chdir(tmp_path)
    main(
        [
            *("fit", "-c", str(method), "-c", str(data)),
            *("-c", str(CONFIGS / "hardware/cpu.yaml")),
            *("--trainer.fast_dev_run", "true", "--data.batch_size", "32"),
        ]
    )
    assert not Path("runs").exists()
