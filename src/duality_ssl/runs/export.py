"""`duality-ssl export`: the backbone of a run for another library, and a card beside it."""

import csv
import json
import re
from argparse import ArgumentParser
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities import rank_zero_info

import duality_ssl
from duality_ssl.files import write_atomically
from duality_ssl.networks.targets import Network
from duality_ssl.networks.weights import SUFFIXES, Exported, export_backbone
from duality_ssl.runs.config import read_config
from duality_ssl.runs.folder import CONFIG, Checkpoint, read_checkpoint, run_of
from duality_ssl.runs.resume import deciding_values, find_checkpoint, flatten

# what decides a run besides `deciding_values`, where the global batch is one number
_OF_THE_BATCH = (
    *("data.batch_size", "trainer.accumulate_grad_batches", "trainer.devices"),
    *("trainer.num_nodes", "trainer.max_epochs", "trainer.max_steps"),
)

_LICENSE = """\
## License

The code of duality_ssl is under the MIT license. The license of the weights is up to their
owner, and may depend on the images."""


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of `export`."""
    parser.add_argument("run", type=Path, help="folder of a run, or a checkpoint")
    parser.add_argument("--to", required=True, help="torchvision, timm, safetensors or onnx")
    parser.add_argument("--out", type=Path, help="the file; by default beside the checkpoint")
    parser.add_argument("--teacher", action="store_true", help="the teacher's backbone")


def export(run: Path, to: str, out: Path | None = None, teacher: bool = False) -> Path:
    """Write the backbone of a run for another library, and a card beside it, ``FILE.md``.

    Args:
        run: Folder of a run (then its ``last.ckpt``), or a checkpoint.
        to: ``torchvision``, ``timm``, ``safetensors`` or ``onnx``, as in
            `duality_ssl.networks.weights.export_backbone`.
        out: The file; by default ``backbone-torchvision.pth``, ``backbone-timm.safetensors``,
            ``backbone.safetensors`` or ``backbone.onnx`` beside the checkpoint, with ``-best`` for
            ``best.ckpt`` and ``-teacher`` for the teacher.
        teacher: Write the teacher's backbone, and the scores of a test of it.

    Returns:
        The file.

    Raises:
        FileNotFoundError: If there is no such run.
        ValueError: If the checkpoint is damaged or has no teacher to write, or the library has no
            network for the weights.
    """
    checkpoint = read_checkpoint(find_checkpoint(str(run)), of_fit=False)
    path = out or checkpoint.path.parent / _default_name(to, checkpoint.path.stem, teacher)
    scores, config = _scores(checkpoint, teacher), run_of(checkpoint.path) / CONFIG
    options = flatten(read_config(config)[1]) if config.is_file() else {}
    exported = export_backbone(checkpoint.path, path, to, teacher)
    parts = [
        f"# {' '.join(exported.network.name.split())}, pretrained without labels",
        _facts(exported, checkpoint, path, options.get("data.source")),
        f"## Load\n\n```python\n{_loading(exported.network, path.name, to)}\n```",
        f"## Scores\n\n{scores}",
        *([f"## Config\n\n```yaml\n{_deciding(options)}```"] if options else []),
        _LICENSE,
    ]
    text, card = "\n\n".join(parts) + "\n", path.with_name(f"{path.name}.md")
    write_atomically(card, lambda file: file.write(text.encode()))
    rank_zero_info(f"Its card: {card}.")
    return path


def _default_name(to: str, checkpoint: str, teacher: bool) -> str:
    library = f"-{to}" if to in ("torchvision", "timm") else ""
    mark = ("-teacher" if teacher else "") + ("" if checkpoint == "last" else f"-{checkpoint}")
    return f"backbone{library}{mark}{SUFFIXES.get(to, ('',))[0]}"


def _facts(exported: Exported, checkpoint: Checkpoint, path: Path, data: str | None) -> str:
    """The first table of the card; what is not known of the run is left out."""
    network, about, shapes = exported.network, exported.about, exported.shapes
    left_out = ", ".join(f"{count} of the {name}" for name, count in exported.left_out.items())
    facts = {
        "file": f"`{path.name}`, {len(shapes)} tensors, {sum(map(prod, shapes)):,} numbers",
        "network": f"`{network.name}`",
        "images": f"{network.in_channels} x {network.side} x {network.side}",
        "normalization": _normalization(about),
        "method": about.get("method"),
        "data": data,
        "checkpoint": f"`{checkpoint.path.name}`, step {checkpoint.step}, "
        f"epoch {checkpoint.epochs}",
        "tensors left out": left_out and f"{left_out}: pretraining alone uses them",
        "written by": f"duality_ssl {duality_ssl.__version__}",
    }
    return _table("", "", {name: fact for name, fact in facts.items() if fact})


def _normalization(about: Mapping[str, Any]) -> str | None:
    if about.get("mean") is None or about.get("std") is None:
        return None
    mean, std = (
        ", ".join(f"{value:.4g}" for value in about[name])
        if isinstance(about[name], tuple | list)
        else str(about[name])
        for name in ("mean", "std")
    )
    return f"mean ({mean}), std ({std}), for values in [0, 1]"


def _loading(network: Network, file: str, to: str) -> str:
    """How to load the file, in a few lines."""
    name, channels, size, side = network
    bare = name.removeprefix("timm/")
    if to == "torchvision":
        head = "classifier[2]" if bare.startswith("convnext") else "fc"
        lines = [
            f"import torch, torchvision\n\nnetwork = torchvision.models.{bare}()",
            f"network.{head} = torch.nn.Identity()",
            f"network.load_state_dict(torch.load({file!r}, weights_only=True))",
        ]
    elif to == "timm":
        more = "" if channels == 3 else f", in_chans={channels}"
        more += f", img_size={size}" if size else ""
        call = f"timm.create_model({bare!r}, checkpoint_path={file!r}, num_classes=0{more})"
        lines = ["import timm\n", f"network = {call}"]
    elif to == "onnx":
        lines = [
            f"import onnxruntime\n\nsession = onnxruntime.InferenceSession({file!r})",
            f"# images: float32 (N, {channels}, {side}, {side})",
            '(features,) = session.run(["features"], {"images": images})',
        ]
    else:
        home, _, function = name.rpartition(".")
        more = f", image_size={size}" if size else ""
        build = f"create_backbone({name!r}, in_channels={channels}{more})"
        origin = "from duality_ssl import create_backbone"
        if home and name.replace(".", "_").isidentifier():  # a function of the user's
            origin, build = f"from {home} import {function}", f"{function}({channels})"
        lines = [
            f"{origin}\nfrom safetensors.torch import load_file\n\nnetwork = {build}",
            f"network.load_state_dict(load_file({file!r}))",
        ]
    return "\n".join(lines)


def _scores(checkpoint: Checkpoint, teacher: bool) -> str:
    """The tables of the offline and of the last online scores; says what is not there."""
    path = checkpoint.path
    mark = ("-teacher" if teacher else "") + ("" if path.stem == "last" else f"-{path.stem}")
    evaluation = path.with_name(f"evaluation{mark}.json")
    if not evaluation.is_file():
        said = "There is no offline evaluation: `duality-ssl test` writes one."
    elif evaluation.stat().st_mtime < path.stat().st_mtime:
        said = f"`{evaluation.name}` is older than the checkpoint: `duality-ssl test` renews it."
    else:
        content = _read_json(evaluation)
        scores = {f"`{k}`": f"{v:.4g}" for k, v in content.items() if isinstance(v, float)}
        images = f"{content.get('num_train')} training and {content.get('num_val')} validation"
        said = f"Offline, on {images} images:\n\n{_table('score', 'value', scores)}"
    online = _online(run_of(path) / "metrics.csv", checkpoint.step)
    table = _table("score", "value", online)
    return f"{said}\n\nOnline, the last:\n\n{table}" if online else said


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is not valid JSON: write it again by a test.") from error


def _online(metrics: Path, step: int) -> dict[str, str]:
    """The last value of each metric of the validation, up to a step."""
    last: dict[str, str] = {}
    if metrics.is_file():
        with metrics.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if (row.get("step") or "").isdigit() and int(row["step"]) <= step:
                    last |= {k: v for k, v in row.items() if v and str(k).startswith("val/")}
    return {f"`{name}`": f"{float(value):.4g}" for name, value in last.items()}


def _deciding(config: Mapping[str, Any]) -> str:
    """The options that decided the run's result, in YAML."""
    options = deciding_values(dict(config)) | {name: config.get(name) for name in _OF_THE_BATCH}
    given = {name: value for name, value in options.items() if value is not None}
    return yaml.safe_dump(given, default_flow_style=None)


def _table(name: str, value: str, rows: Mapping[str, object]) -> str:
    lines = [(name, value), ("---", "---"), *rows.items()]
    cells = ([re.sub(r"[|\n]", " ", str(cell)) for cell in line] for line in lines)
    return "\n".join(f"| {left} | {right} |" for left, right in cells)
