"""Run the experiments of docs/results.md and write their tables there.

    python benchmarks/results.py digits fashion_mnist
    python benchmarks/results.py digits --rows vicreg simclr

Each row is two commands, ``duality-ssl fit`` and ``duality-ssl test``, with the configs of this
repository; its figures are read from the files that they write. ``--render`` rewrites the tables
from the figures in docs/results/ and runs nothing.
"""

import argparse
import csv
import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
FIGURES = ROOT / "docs" / "results"
PAGE = ROOT / "docs" / "results.md"
ROWS = {
    "digits": [path.stem for path in sorted(CONFIGS.glob("methods/*.yaml"))],
    "fashion_mnist": ["vicreg", "simclr"],
}
LABELS = {
    "simclr": "SimCLR",
    "simclr_sq": "SimCLR-sq",
    "simclr_abs": "SimCLR-abs",
    "simclr_a": "SimCLR A",
    "simclr_b": "SimCLR B",
    "dcl": "DCL",
    "dcl_sq": "DCL-sq",
    "dcl_abs": "DCL-abs",
    "spectral_contrastive": "Spectral contrastive",
    "vicreg": "VICReg",
    "vicreg_exp": "VICReg-exp",
    "vicreg_ctr": "VICReg-ctr",
    "barlow_twins": "Barlow Twins",
    "tcr": "TCR",
    "untrained": "*untrained network*",
    "pixels": "*raw pixels*",
}


def command(*words: str) -> None:
    """Run ``duality-ssl`` in the repository's folder."""
    subprocess.run([sys.executable, "-m", "duality_ssl", *words], cwd=ROOT, check=True)


def pretrained(data: str, method: str, seed: int) -> dict[str, Any]:
    """Pretrain and evaluate one method; return its time, online accuracy and evaluation."""
    experiment = f"results_{data}/{method}"
    configs = ["-c", f"configs/data/{data}.yaml", "-c", f"configs/methods/{method}.yaml"]
    started = time.perf_counter()
    command("fit", *configs, "--experiment", experiment, "--seed_everything", str(seed))
    seconds = time.perf_counter() - started
    runs = (ROOT / "runs" / experiment).glob("*/version_*")
    run = max(runs, key=lambda path: int(path.name.rpartition("_")[2]))
    command("test", "--ckpt_path", str(run))
    with (run / "metrics.csv").open() as file:
        online = [
            float(row["val/probe_top1"]) for row in csv.DictReader(file) if row["val/probe_top1"]
        ]
    evaluation = json.loads((run / "checkpoints" / "evaluation.json").read_text())
    return {"seconds": seconds, "online_top1": online[-1], **evaluation}


def untrained(data: str, seed: int) -> dict[str, Any]:
    """Evaluate the network with random weights."""
    folder = ROOT / "runs" / f"results_{data}" / "untrained"
    words = ["--model", "VICReg", "--seed_everything", str(seed)]
    folder_words = ["--trainer.default_root_dir", str(folder)]
    command("test", "-c", f"configs/data/{data}.yaml", *words, *folder_words)
    return json.loads((folder / "evaluation.json").read_text())


def pixels(data: str, seed: int) -> dict[str, Any]:
    """Evaluate the pixels of the images as vectors."""
    import torch
    import yaml

    from duality_ssl.data import SSLDataModule, create_source
    from duality_ssl.evaluation import evaluate

    options = yaml.safe_load((CONFIGS / "data" / f"{data}.yaml").read_text())["data"]
    options = {name: options[name] for name in ("source", "subset") if name in options}
    size = create_source(options["source"]).load("val").images.shape[-1]
    datamodule = SSLDataModule(**options, image_size=size, seed=seed)
    datamodule.setup("test")
    sets = []
    for loader in datamodule.test_dataloader():
        batches = [datamodule.on_after_batch_transfer(batch, 0) for batch in loader]
        sets.append(torch.cat([images[0].flatten(1) for images, _ in batches]))
        sets.append(torch.cat([labels for _, labels in batches]))
    figures = evaluate(*sets)
    del figures["rankme"]  # the other rows have the rank of the embeddings
    return figures


def run(data: str, rows: list[str], seed: int) -> None:
    """Run rows of one table and save each as soon as it is done; other rows stay."""
    import torch

    machine = {
        "machine": f"{torch.get_num_threads()} threads, {processor()}",
        "torch": torch.__version__,
    }
    FIGURES.mkdir(parents=True, exist_ok=True)
    path = FIGURES / f"{data}.jsonl"
    table = [*ROWS[data], "untrained", "pixels"]
    kept = {line["row"]: line for line in read(path)} if path.is_file() else {}
    for row in [name for name in table if name in rows] if rows else table:
        if row in ("untrained", "pixels"):
            figures = {"untrained": untrained, "pixels": pixels}[row](data, seed)
        else:
            figures = pretrained(data, row, seed)
        kept[row] = {"row": row, "seed": seed, **machine, **figures}
        path.write_text("".join(json.dumps(kept[name]) + "\n" for name in table if name in kept))


def read(path: Path) -> list[dict[str, Any]]:
    """Read the figures of one table, one row a line."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def processor() -> str:
    """Return the name of the processor as the system reports it."""
    info = Path("/proc/cpuinfo")
    names = info.read_text().splitlines() if info.is_file() else []
    found = [line.partition(":")[2].strip() for line in names if line.startswith("model name")]
    return found[0] if found else platform.processor() or platform.machine()


def table(rows: Iterable[dict[str, Any]]) -> str:
    """Render figures as a Markdown table: percent, and seconds of the whole ``fit`` command."""
    rows = list(rows)
    header = ["", "time", "online", "linear", "5 labels a class", "5-NN", "RankMe"]
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    for row in rows:
        few = f"{100 * row['few_label_top1']:.1f} ± {100 * row['few_label_std']:.1f}"
        lines.append(
            [
                LABELS[row["row"]],
                f"{row['seconds']:.0f} s" if "seconds" in row else "",
                percent(row.get("online_top1")),
                percent(row["linear_top1"]),
                few,
                percent(row["knn_top1"]),
                f"{row['rankme']:.0f}" if "rankme" in row else "",
            ]
        )
    note = f"Seed {rows[0]['seed']}, {rows[0]['machine']}, torch {rows[0]['torch']}."
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{note}"


def percent(fraction: float | None) -> str:
    """Format a fraction as percent with one decimal; None as nothing."""
    return "" if fraction is None else f"{100 * fraction:.1f}"


def render() -> None:
    """Write each table between its two markers."""
    for figures in sorted(FIGURES.glob("*.jsonl")):
        write_table(PAGE, figures.stem, table(read(figures)))


def write_table(page: Path, name: str, rendered: str) -> None:
    """Write a table between its two markers, if the page has them."""
    begin, end = f"<!-- table {name} -->", f"<!-- end {name} -->"
    text = page.read_text()
    if begin in text:
        head, _, rest = text.partition(begin)
        page.write_text(f"{head}{begin}\n{rendered}\n{end}{rest.partition(end)[2]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("tables", nargs="*", help=f"any of {', '.join(ROWS)}; all by default")
    parser.add_argument("--rows", nargs="+", default=[], help="only these rows, such as vicreg tcr")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--render", action="store_true", help="run nothing, write the tables")
    args = parser.parse_args()
    if unknown := {*args.tables} - {*ROWS}:
        parser.error(f"expected tables of {', '.join(ROWS)}, but got {', '.join(unknown)}")
    if unknown := {*args.rows} - {*LABELS}:
        parser.error(f"expected rows of {', '.join(LABELS)}, but got {', '.join(unknown)}")
    if not args.render:
        for name in args.tables or ROWS:
            run(name, args.rows, args.seed)
    render()
