"""Choose the defaults of VICReg-ctr: temperature times weight, on a held-out fifth of *train*.

    python benchmarks/vicreg_ctr.py
    python benchmarks/vicreg_ctr.py --render

The digits with ``configs/data/digits.yaml``, whose evaluation set takes no part: a fifth of the
training images, the same for every run, is what the accuracies are of. The weight is half, once and
twice that of the identity with DCL, ``covariance = invariance * temperature``. A row is kept in
``docs/results/sweeps/vicreg_ctr.jsonl`` as soon as it is there, and is not run again.
"""

import argparse
import itertools
import json
import statistics
from collections import defaultdict
from typing import Any

import torch
from studies import FIGURES, RESULTS, ROOT, percent, write_table

TEMPERATURES = (0.1, 0.15, 0.25, 0.5)
FACTORS = (0.5, 1.0, 2.0)  # of the identity's weight
SEEDS = (0, 1, 2)
INVARIANCE = 25
ROWS = FIGURES / "sweeps" / "vicreg_ctr.jsonl"
PAGE = RESULTS


def register_held_out_fifth() -> None:
    """Let configs name the training digits, every fifth of them held out."""
    from duality_ssl.data import ArrayImages, register_source
    from duality_ssl.data.sources import Digits

    @register_source("digits_of_train")
    class DigitsOfTrain(Digits):
        def load(self, split: str) -> ArrayImages:
            train = super().load("train")
            held_out = torch.arange(len(train)) % 5 == 0
            return train.subset(held_out if split == "val" else ~held_out)


def run(temperature: float, factor: float, seed: int) -> dict[str, Any]:
    """Pretrain and evaluate once."""
    from duality_ssl.cli import main

    covariance = factor * INVARIANCE * temperature
    experiment = f"vicreg_ctr/{temperature}_{factor}"
    method = ["--model", "VICRegCtr", "--model.temperature", str(temperature)]
    method += ["--model.covariance", str(covariance), "--model.invariance", str(INVARIANCE)]
    data = ["-c", str(ROOT / "configs/data/digits.yaml"), "--data.source", "digits_of_train"]
    place = ["--trainer.default_root_dir", str(ROOT / "runs"), "--experiment", experiment]
    without = ["--without", "[probe, knn, rankme, duality, views, best_checkpoint]"]
    main(["fit", *data, *method, *place, *without, "--seed_everything", str(seed)])
    runs = (ROOT / "runs").glob(f"**/{experiment}/VICRegCtr/version_*")
    folder = max(runs, key=lambda path: path.stat().st_mtime)
    main(["test", "--ckpt_path", str(folder)])
    figures = json.loads((folder / "checkpoints" / "evaluation.json").read_text())
    setting = {"temperature": temperature, "factor": factor, "covariance": covariance, "seed": seed}
    scores = ("linear_top1", "few_label_top1", "knn_top1", "rankme")
    return setting | {name: figures[name] for name in scores}


def sweep() -> None:
    """Run what has no row yet."""
    register_held_out_fifth()
    rows = read()
    done = {(row["temperature"], row["factor"], row["seed"]) for row in rows}
    for seed, temperature, factor in itertools.product(SEEDS, TEMPERATURES, FACTORS):
        if (temperature, factor, seed) not in done:
            row = run(temperature, factor, seed)
            ROWS.parent.mkdir(exist_ok=True)
            with ROWS.open("a") as file:
                file.write(json.dumps(row) + "\n")


def read() -> list[dict[str, Any]]:
    """The rows at hand."""
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.is_file() else []


def table(rows: list[dict[str, Any]]) -> str:
    """Render mean and standard deviation over seeds, a setting a line."""
    settings = defaultdict(list)
    for row in rows:
        settings[row["temperature"], row["covariance"], row["factor"]].append(row)
    header = ["temperature", "covariance", "of the identity's", "5 labels a class"]
    lines = [header, ["---:"] * len(header)]
    for (temperature, covariance, factor), runs in sorted(settings.items()):
        few = spread([run["few_label_top1"] for run in runs])
        lines.append([f"{temperature:g}", f"{covariance:g}", f"{factor:g}", few])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spread(values: list[float]) -> str:
    """Mean ± standard deviation, percent."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{percent(statistics.mean(values))} ± {percent(deviation)}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--render", action="store_true", help="run nothing, write the table")
    args = parser.parse_args()
    if not args.render:
        sweep()
    write_table(PAGE, "vicreg_ctr", table(read()))
