"""Every config parses and repeats no default; every method trains on every offline set."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from duality_ssl import criteria, methods
from duality_ssl.cli import main
from duality_ssl.cli.command import method_names
from duality_ssl.data import SSLDataModule, View

CONFIGS = Path(__file__).parents[1] / "configs"
METHODS = sorted(CONFIGS.glob("methods/*.yaml"))
DATA = sorted(CONFIGS.glob("data/*.yaml"))
DIGITS = CONFIGS / "data/digits.yaml"
FASHION_MNIST = CONFIGS / "data/fashion_mnist.yaml"
PUBLISHED = sorted(CONFIGS.glob("published/*.yaml"))
# tests/sweeps reads those of sweeps
OF_FITS = [
    path
    for path in sorted(CONFIGS.glob("*/*.yaml"))
    if path.parent.name not in ("sweeps", "published")
]


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
    assert_arrived(yaml.safe_load(path.read_text()), config)


def assert_arrived(written: Any, resolved: Any) -> None:
    if isinstance(written, dict):
        for key, value in written.items():
            assert_arrived(value, resolved[key])
    elif isinstance(written, str) and isinstance(resolved, str):
        assert resolved.endswith(written)
    else:
        assert resolved == written or float(resolved) == float(written)


@pytest.mark.parametrize("path", PUBLISHED, ids=ids)
@pytest.mark.filterwarnings("error")
def test_published_settings_arrive_by_the_command_in_their_file(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    (command,) = re.findall("^# duality-ssl fit (.*)$", path.read_text(), re.MULTILINE)
    assert str(path.relative_to(CONFIGS.parent)) in command.split()
    config = parse(capsys, *command.split())
    assert_arrived(yaml.safe_load(path.read_text()), config)
    model = config["model"]["init_args"]
    assert ("momentum" in model["optimizer"]["init_args"]) == (path.stem[-4:] != "wmse")
    assert config["data"]["batch_size"] * config["trainer"]["devices"] == 256


@pytest.mark.parametrize("path", PUBLISHED, ids=ids)
def test_published_settings_say_only_what_differs(path: Path) -> None:
    """From the config of the data, which serves CIFAR-10 and CIFAR-100 alike, and the defaults."""
    own, data = (yaml.safe_load(each.read_text()) for each in (path, data_of(path)))
    method = getattr(methods, own["model"]["class_path"])
    parts = (
        (own["model"]["init_args"], data["model"]["init_args"], method),
        (own.get("data", {}), data["data"], SSLDataModule),
        (own.get("data", {}).get("view1", {}), data["data"]["view1"], View),
    )
    for written, before, signature in parts:
        parameters = inspect.signature(signature).parameters
        for name, value in written.items():
            default = parameters[name].default
            before_it = before.get(name, list(default) if isinstance(default, tuple) else default)
            assert yaml_number(value) != yaml_number(before_it), name
    assert own.get("trainer", {}) != data["trainer"]


@pytest.mark.parametrize("data", ["cifar", "imagenet100"])
def test_published_weights_give_the_losses_of_solo_learn(data: str) -> None:
    """Whose VICReg does not halve the variance, and whose Barlow Twins has a factor of 0.1."""
    z1, z2 = torch.randn(2, 16, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    c1, c2 = (z - z.mean(dim=0) for z in (z1, z2))
    variance = sum((1 - (z.var(dim=0) + 1e-4).sqrt()).relu().mean() for z in (z1, z2))
    squares = [(c.T @ c / 15).square() for c in (c1, c2)]
    covariance = sum(c.sum() - c.diagonal().sum() for c in squares) / 5
    vicreg = 25 * (z1 - z2).square().mean() + 25 * variance + covariance
    x = (c1 / z1.std(dim=0, correction=0)).T @ (c2 / z2.std(dim=0, correction=0)) / 16
    off = x.square().sum() - x.diagonal().square().sum()
    barlow_twins = 0.1 * ((x.diagonal() - 1).square().sum() + 0.0051 * off)
    for name, expected in (("vicreg", vicreg), ("barlow_twins", barlow_twins)):
        model = yaml.safe_load((CONFIGS / f"published/{data}_{name}.yaml").read_text())["model"]
        criterion = getattr(criteria, model["class_path"])
        taken = inspect.signature(criterion).parameters.keys() & model["init_args"].keys()
        loss = criterion(**{each: model["init_args"][each] for each in taken})(z1, z2)["loss"]
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


def yaml_number(value: Any) -> Any:
    """YAML reads 1e-6, without a dot, as a word."""
    return float(value) if re.fullmatch(r"\de-\d", str(value)) else value


def data_of(path: Path) -> Path:
    return CONFIGS / f"data/{path.stem.partition('_')[0].replace('cifar', 'cifar10')}.yaml"


def test_one_file_serves_both_cifars() -> None:
    """Else the configs of one method would have to differ."""
    first, second = (
        yaml.safe_load((CONFIGS / f"data/{name}.yaml").read_text())
        for name in ("cifar10", "cifar100")
    )
    first["data"]["source"] = "cifar100"
    assert first == second


def test_every_method_has_a_config() -> None:
    configured = {yaml.safe_load(path.read_text())["model"]["class_path"] for path in METHODS}
    assert configured == {*methods.__all__} & {*method_names()}


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


WHITENED = {"wmse": ("--model.projector", "64-16", "--model.w_size", "32")}  # more than 16 samples


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
            *WHITENED.get(method.stem, ()),
        ]
    )
    assert not Path("runs").exists()
