"""What each kernel buys: time and memory of a function with it, beside the plain formula."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from criteria import Step, prepare, views
from measure import alternate, parser, peak_memory, save
from torch import Tensor

from duality_ssl import functional
from duality_ssl.functional._kernels import dispatch

Function = Callable[[Tensor], Tensor]

# A function of one view, the shapes to show, and the criteria that call it there.
CASES: dict[str, tuple[Function, list[tuple[int, int]], str]] = {
    "squared_covariance": (
        functional.squared_covariance,
        [(256, 2048), (256, 8192), (1024, 8192), (4096, 256)],
        "VICReg",
    ),
    "variance": (functional.variance, [(256, 8192), (1024, 8192)], "VICReg, -exp"),
    "sample_gram": (
        lambda z: functional.sample_gram(z).square().sum(),
        [(256, 2048), (256, 8192), (1024, 8192)],
        "Barlow Twins, TCR",
    ),
    "dimension_gram": (
        lambda z: functional.dimension_gram(z).square().sum(),
        [(2048, 512), (4096, 256)],
        "TCR, spectral",
    ),
    "standardize_columns": (
        functional.standardize_columns,
        [(256, 8192), (4096, 256)],
        "Barlow Twins, SimCLR B",
    ),
    "logsumexp_of_others": (
        partial(functional.logsumexp_of_others, temperature=100.0),
        [(512, 2048), (2048, 256), (8192, 256)],
        "SimCLR, DCL, VICReg-exp, -ctr",
    ),
}


def compare(name: str, n: int, d: int, repeats: int, device: str) -> dict[str, Any]:
    """Measure one function at one shape, forward and backward, with the kernel and without: a row.

    The gradient that comes in is that of a sum of the results with different weights.
    """
    function, _, used_by = CASES[name]
    z, _ = views(n, d, device, torch.float32)

    def loss(z: Tensor, _: Tensor) -> Tensor:
        result = function(z)
        return (result * weights.view(result.shape)).sum()

    weights = torch.linspace(0.5, 1.5, function(z.detach()).numel(), device=device)
    steps = {who: Step(loss, z, z) for who in ("kernel", "formula")}
    smallest = {"kernel": 0, "formula": z.numel() ** 2}

    def run(who: str) -> None:
        dispatch.SMALLEST = smallest[who]
        steps[who]()

    chosen = dispatch.SMALLEST
    row: dict[str, Any] = {"what": name, "used by": used_by, "n": n, "d": d}
    row |= {f"{who}_bytes": peak_memory(partial(run, who)) for who in steps}
    error = steps["kernel"].error(steps["formula"])
    if error > 1e-3:
        raise RuntimeError(f"Expected the kernel of {name} to agree with the formula: {error}.")
    for step in steps.values():
        step.last = ()
    medians = alternate({who: partial(run, who) for who in steps}, repeats)
    dispatch.SMALLEST = chosen
    seconds = {f"{who}_seconds": medians[who] for who in steps}
    return {**row, **seconds, "formula_/_kernel_ratio": medians["formula"] / medians["kernel"]}


def main() -> None:
    """Measure what the command line says."""
    options = parser(__doc__)
    options.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    args = options.parse_args()
    prepare(args)
    rows = [
        compare(name, n, d, 1 if args.smoke else args.repeats, args.device)
        for name, (_, shapes, _) in CASES.items()
        for n, d in ([(8, 16), (16, 8)] if args.smoke else shapes)
    ]
    save("kernels" + ("-cuda" if args.device == "cuda" else ""), rows, args.out)


if __name__ == "__main__":
    main()
