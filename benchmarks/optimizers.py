"""LARS beside bolts', timm's and lightly's, and torch's fused optimisers, on ResNet-50."""

import importlib
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import timm.optim
import torch
from measure import alternate, parser, peak_memory, save
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torchvision.models import resnet18, resnet50

from duality_ssl.methods.optimization import parameter_groups
from duality_ssl.optim import LARS

Make = Callable[[list[dict[str, Any]]], Optimizer]

STEPS = 3  # that are compared before the clock starts
TOLERANCE = 1e-6  # of each tensor's norm
LARS_ARGUMENTS: dict[str, Any] = {"lr": 0.3, "momentum": 0.9}
SGD_ARGUMENTS: dict[str, Any] = {"lr": 0.1, "momentum": 0.9}
# The peers' LARS, by the module that has it.
PEERS = {"bolts": "pl_bolts.optimizers", "lightly": "lightly.utils.lars"}


def contenders() -> dict[str, dict[str, Make]]:
    """Optimisers that take the same steps, by what is compared; the first of each is ours."""
    lars: dict[str, Make] = {
        "ours": partial(LARS, **LARS_ARGUMENTS),
        "timm": partial(timm.optim.Lars, **LARS_ARGUMENTS),
        "timm_loop": partial(timm.optim.Lars, foreach=False, **LARS_ARGUMENTS),
    }
    for name, module in PEERS.items():
        try:
            with warnings.catch_warnings():  # bolts warns of its age
                warnings.simplefilter("ignore")
                lars[name] = partial(importlib.import_module(module).LARS, **LARS_ARGUMENTS)
        except ImportError:
            print(f"{name} is left out: it is not installed.")
    return {
        "LARS": lars,
        "AdamW": {
            "ours": partial(AdamW, lr=1e-3, fused=True),
            "torch": partial(AdamW, lr=1e-3),
        },
        "SGD": {
            "ours": partial(SGD, fused=True, **SGD_ARGUMENTS),
            "torch": partial(SGD, **SGD_ARGUMENTS),
        },
    }


class Training:
    """A network with gradients, and the optimiser whose steps are measured."""

    def __init__(self, build: Callable[[], nn.Module], make: Make, device: str) -> None:
        torch.manual_seed(0)
        self.network = build().to(device)
        for parameter in self.network.parameters():
            parameter.grad = 1e-3 * torch.randn_like(parameter)
        self.optimizer = make(parameter_groups(self.network, 1e-6))

    def error(self, other: "Training") -> float:
        """The largest relative difference of a tensor from the other's."""
        pairs = zip(self.network.parameters(), other.network.parameters(), strict=True)
        return max(((a - b).norm() / b.norm()).item() for a, b in pairs)


def compare(
    what: str, makes: dict[str, Make], build: Callable[[], nn.Module], repeats: int, device: str
) -> dict[str, Any]:
    """Check that all take the same steps, and time them: one row."""
    runs = {name: Training(build, make, device) for name, make in makes.items()}
    row: dict[str, Any] = {"what": what, "network": build.__name__}
    for run in runs.values():
        for _ in range(STEPS):
            run.optimizer.step()
    for name in [*makes][1:]:
        row[f"{name}_error"] = runs["ours"].error(runs[name])
        if row[f"{name}_error"] > TOLERANCE:
            raise RuntimeError(f"Expected {what} to take the steps of {name}, but got {row}.")
    row |= {f"{name}_bytes": peak_memory(run.optimizer.step) for name, run in runs.items()}
    times = alternate({name: run.optimizer.step for name, run in runs.items()}, repeats)
    ratios = {f"times_{name}": times[name] / times["ours"] for name in runs if name != "ours"}
    row |= {f"{name}_seconds": seconds for name, seconds in times.items()}
    return row | ratios | {"times_fastest": min(ratios.values())}


if __name__ == "__main__":
    options = parser(__doc__)
    options.set_defaults(repeats=21)
    options.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    args = options.parse_args()
    if args.device == "cpu":
        torch.set_num_threads(2)
    build, repeats = (resnet18, 1) if args.smoke else (resnet50, args.repeats)
    rows = [
        compare(what, makes, build, repeats, args.device) for what, makes in contenders().items()
    ]
    save("optimizers-cuda" if args.device == "cuda" else "optimizers", rows, args.out)
