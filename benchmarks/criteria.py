"""Time and memory of the criteria, forward and backward, beside lightly's and the textbook form."""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import measure
import textbook
import torch
import torch.nn.functional as F
from measure import SLOW, alternate, parser, peak_memory
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from duality_ssl import criteria

try:
    import lightly.loss as lightly
    from lightly.loss import emp_ssl_loss
except ImportError:
    lightly = None

Loss = Callable[[Tensor, Tensor], Tensor]
Products = list[tuple[Tensor, Tensor]]

SHAPES = [(256, 2048), (256, 8192), (1024, 8192), (2048, 512), (4096, 256)]
LARGE = ("SimCLR", "SimCLR-sq", "DCL")  # in a batch of 16,384
# What a peer may need at most; else it is left out, and the row says so.
MOST_BYTES, MOST_SECONDS = 8 * 2**30, 20.0
TOLERANCE = 1e-3  # of loss and gradient, relative, in float32


def gram_products(z1: Tensor, z2: Tensor) -> Products:
    """Each view's Gram matrix on the smaller side, and that side times the view: 4 products."""
    return [pair for z in (z1, z2) for pair in _gram(z if len(z) <= z.shape[1] else z.T)]


def cross_products(a: Tensor, b: Tensor) -> Products:
    """``a b^T`` and its two gradients, 3 products, or 4 with the two Gram matrices if smaller."""
    if len(a) > a.shape[1]:
        return gram_products(a, b)
    return [(a, b.T), (square := _square(a), b), (square.T, a)]


def centroid_products(z1: Tensor, z2: Tensor) -> Products:
    """The Gram matrix of the views' mean on the smaller side, and its gradient: 2 products."""
    return _gram(z1 if len(z1) <= z1.shape[1] else z1.T)


def key_products(z1: Tensor, z2: Tensor) -> Products:
    """Each view with the other one's keys, and its gradient: 4 products."""
    square = _square(z1)
    return [(z1, z2.T), (square, z2), (z2, z1.T), (square, z1)]


def row_products(z1: Tensor, z2: Tensor) -> Products:
    """``z z^T`` of each view and its gradient, whichever side is smaller: 4 products."""
    return [*_gram(z1), *_gram(z2)]


def pair_products(z1: Tensor, z2: Tensor) -> Products:
    """Two views' three blocks of similarities and their gradients: 7 products."""
    square = _square(z1)
    return [*row_products(z1, z2), (z1, z2.T), (square, z2), (square.T, z1)]


def _gram(z: Tensor) -> Products:
    return [(z, z.T), (_square(z), z)]


def _square(z: Tensor) -> Tensor:
    return torch.ones(len(z), len(z), device=z.device)


class Case(NamedTuple):
    """One criterion: ours, its products, the textbook form, lightly's; and how peers grow."""

    ours: Callable[[], criteria.Criterion]
    products: Callable[[Tensor, Tensor], Products]
    textbook: Loss
    lightly: Callable[[], Loss] | None = None
    # Side of the textbook form's square matrix, and whether it is factorised.
    side: Callable[[int, int], int] = lambda n, d: d
    factorised: bool = False
    comparable: bool = True  # lightly's loss and gradient are ours


def _lightly_tcr() -> Loss:
    """EMP-SSL's functions, a view at a time: a batched determinant fails in MKL on two threads."""

    def loss(z1: Tensor, z2: Tensor) -> Tensor:
        h = torch.stack([F.normalize(z1), F.normalize(z2)])
        rates = [emp_ssl_loss.tcr_loss(view[None], eps=0.2) for view in h]
        return 100 * emp_ssl_loss.invariance_loss(h) - sum(rates) / 2

    return loss


def _lightly_frossl() -> Loss:
    criterion = lightly.FroSSLLoss()
    return lambda z1, z2: criterion([z1, z2])


def _pairs(name: str, similarity: str, peer: Callable[[], Loss] | None = None) -> Case:
    function = {"cosine": lambda p: p, "squared": torch.square, "absolute": torch.abs}[similarity]
    return Case(
        partial(getattr(criteria, name), similarity=similarity),
        pair_products,
        partial(getattr(textbook, name.lower()), similarity=function),
        peer,
        side=lambda n, d: 2 * n,
    )


CASES: dict[str, Case] = {
    "VICReg": Case(criteria.VICReg, gram_products, textbook.vicreg, lambda: lightly.VICRegLoss()),
    "Barlow Twins": Case(
        criteria.BarlowTwins,
        lambda z1, z2: cross_products(z1.T, z2.T),
        textbook.barlow_twins,
        lambda: lightly.BarlowTwinsLoss(),
    ),
    "TCR": Case(
        criteria.TCR,
        gram_products,
        textbook.tcr,
        _lightly_tcr,
        factorised=True,
        comparable=False,  # its cosines are with the mean of both views
    ),
    "VIbCReg": Case(criteria.VIbCReg, gram_products, textbook.vibcreg),
    "FroSSL": Case(criteria.FroSSL, gram_products, textbook.frossl, _lightly_frossl),
    "MMCR": Case(
        criteria.MMCR,
        centroid_products,
        textbook.mmcr,
        side=lambda n, d: min(n, d),
        factorised=True,
    ),
    "Spectral contrastive": Case(
        criteria.SpectralContrastive,
        cross_products,
        textbook.spectral_contrastive,
        side=lambda n, d: n,
    ),
    "SimCLR": _pairs("SimCLR", "cosine", lambda: lightly.NTXentLoss(0.15)),
    "SimCLR-sq": _pairs("SimCLR", "squared"),
    "SimCLR-abs": _pairs("SimCLR", "absolute"),
    "DCL": _pairs("DCL", "cosine", lambda: lightly.DCLLoss(0.1)),
    "DCL-sq": _pairs("DCL", "squared"),
    "DCL-abs": _pairs("DCL", "absolute"),
    "NSCL": Case(criteria.NSCL, pair_products, textbook.nscl, side=lambda n, d: 2 * n),
    "SupCon": Case(criteria.SupCon, pair_products, textbook.supcon, side=lambda n, d: 2 * n),
    "MoCo v3": Case(criteria.MoCoV3, key_products, textbook.mocov3, side=lambda n, d: n),
    "VICReg-exp": Case(
        criteria.VICRegExp, lambda z1, z2: row_products(z1.T, z2.T), textbook.vicreg_exp
    ),
    "VICReg-ctr": Case(criteria.VICRegCtr, row_products, textbook.vicreg_ctr, side=lambda n, d: n),
}


def views(n: int, d: int, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two views that agree in part, with a standard deviation that the hinge acts on."""
    draw = torch.Generator().manual_seed(0)
    common, *own = (torch.randn(n, d, generator=draw) for _ in range(3))
    z1, z2 = ((0.6 * common + 0.4 * noise).to(device, dtype).requires_grad_() for noise in own)
    return z1, z2


class Step:
    """Forward and backward pass of a loss; keeps what the last one gave."""

    def __init__(self, loss: Loss, z1: Tensor, z2: Tensor) -> None:
        self.loss, self.views = loss, (z1, z2)
        self.last: tuple[Tensor, ...] = ()

    def __call__(self) -> None:
        """Take the step."""
        self.last = ()  # its gradients are not a part of the next step's memory
        loss = self.loss(*self.views)
        self.last = (loss.detach(), *torch.autograd.grad(loss, self.views))

    def error(self, other: "Step") -> float:
        """The largest relative error of loss and gradients against another's."""
        pairs = zip(self.last, other.last, strict=True)
        return max(((a - b).float().norm() / b.float().norm()).item() for a, b in pairs)


def ours(case: Case) -> Loss:
    """The criterion of ``duality_ssl`` as a function that gives the loss alone."""
    criterion = case.ours()
    make = {
        "labels": lambda z1, z2: textbook.labels(z1),
        "targets": textbook.targets,
    }

    def loss(z1: Tensor, z2: Tensor) -> Tensor:
        inputs = {name: make[name](z1, z2) for name in criterion.inputs}
        return criterion(z1, z2, **inputs)["loss"]

    return loss


def peers(name: str, n: int, d: int) -> tuple[dict[str, Loss], list[str]]:
    """Those who can be measured at this shape, and why others cannot."""
    case, notes = CASES[name], []
    found = {"textbook": case.textbook}
    if case.lightly and lightly:
        found["lightly"] = case.lightly()
    side = case.side(n, d)
    if 8 * 4 * side**2 > MOST_BYTES:  # eight matrices of that side: what the widest of them holds
        notes.append(f"{', '.join(found)} left out: over {MOST_BYTES >> 30} GiB")
        found = {}
    if case.factorised and side > 4096:  # 6 seconds at 4096, cubic
        notes.append(f"{', '.join(found)} left out: over {MOST_SECONDS:.0f} s")
        found = {}
    return found, notes


def floor(case: Case, z1: Tensor, z2: Tensor) -> tuple[Callable[[], None], int]:
    """The products that the criterion cannot do without, into buffers that are there; its FLOPs."""
    operands = case.products(z1.detach().float(), z2.detach().float())
    results = [torch.empty(len(a), b.shape[1], device=a.device) for a, b in operands]

    def run() -> None:
        for (a, b), result in zip(operands, results, strict=True):
            torch.mm(a, b, out=result)

    return run, sum(2 * len(a) * a.shape[1] * b.shape[1] for a, b in operands)


def flops(loss: Loss, z1: Tensor, z2: Tensor) -> int:
    """Multiplications and additions of the matrix products of a step."""
    in_place = {torch.ops.aten.addmm_: _addmm_flops}  # which the counter does not know
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        loss(z1, z2).backward()
    z1.grad = z2.grad = None
    return counter.get_total_flops()


def _addmm_flops(to: Any, a: Sequence[int], b: Sequence[int], **_: Any) -> int:
    return 2 * a[0] * a[1] * b[1]


def compare(
    name: str, n: int, d: int, repeats: int, device: str = "cpu", dtype: str = "float32"
) -> dict[str, Any]:
    """Check and measure one criterion at one shape: one row."""
    z1, z2 = views(n, d, device, getattr(torch, dtype))
    case = CASES[name]
    found, notes = peers(name, n, d)
    row: dict[str, Any] = {"what": name, "n": n, "d": d, "dtype": dtype}
    steps = {"ours": Step(ours(case), z1, z2)}
    row["ours_bytes"] = peak_memory(steps["ours"])
    for peer, loss in found.items():
        step = Step(loss, z1, z2)
        try:
            row[f"{peer}_bytes"] = peak_memory(step)
        except RuntimeError as error:
            notes.append(f"{peer} fails: {str(error).partition('.')[0]}")
            continue
        steps[peer] = step
        if peer == "textbook" or case.comparable:
            row[f"{peer}_error"] = steps["ours"].error(step)
            if dtype == "float32" and row[f"{peer}_error"] > TOLERANCE:
                raise RuntimeError(f"Expected {name} to agree with {peer}, but got {row}.")
    run, least = floor(case, z1, z2)
    row["products"] = flops(steps["ours"].loss, z1, z2) / least
    for step in steps.values():
        step.last = ()
    medians = alternate({**steps, "floor": run}, repeats, warmup=0)  # warm by now
    row |= {**medians, "spread": medians.spread["ours"]}
    times = {f"times_{peer}": row[peer] / row["ours"] for peer in found if peer in row}
    row |= times
    if times:
        row["times_fastest"] = min(times.values())
    row["of_floor"] = row["ours"] / row["floor"]
    row["of_products"] = row["of_floor"] / max(1.0, row["products"])
    row["of_allowance"] = row["ours_bytes"] / (4 * (4 * 2 * n * d + min(n, d) ** 2))
    return {**row, "note": "; ".join(notes)}


def point(step: Step, repeats: int) -> tuple[float, int]:
    """Seconds and bytes of a step; one that takes over a second is run once for both."""
    seconds: dict[str, float] = {}
    held = peak_memory(lambda: seconds.update(alternate({"step": step}, repeats=1, warmup=0)))
    if seconds["step"] < SLOW:
        seconds = alternate({"step": step}, repeats)
    return seconds["step"], held


def against_dense(n: int, d: int, repeats: int, device: str) -> dict[str, Any]:
    """Compare SimCLR's tiles with the best dense form: one row."""
    z1, z2 = views(n, d, device, torch.float32)
    steps = {
        "ours": Step(ours(CASES["SimCLR"]), z1, z2),
        "dense": Step(textbook.simclr_dense, z1, z2),
    }
    row = {f"{who}_bytes": peak_memory(step) for who, step in steps.items()}
    times = alternate(steps, repeats)
    ratio = times["dense"] / times["ours"]
    return {"what": "SimCLR", "n": n, "d": d, **times, "times_dense": ratio, **row}


def alone(name: str, n: int, d: int, repeats: int, device: str) -> dict[str, Any]:
    """Measure a batch that no dense form can take: one row."""
    z1, z2 = views(n, d, device, torch.float32)
    seconds, held = point(Step(ours(CASES[name]), z1, z2), repeats)
    return {"what": name, "n": n, "d": d, "ours": seconds, "ours_bytes": held}


def criteria_parser(doc: str | None) -> argparse.ArgumentParser:
    """Return the options of a benchmark of criteria; two threads on a CPU."""
    options = parser(doc)
    options.set_defaults(repeats=5)
    options.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options.add_argument(
        "--only", nargs="+", choices=CASES, default=list(CASES), help="the others' rows stay"
    )
    return options


def prepare(args: argparse.Namespace) -> None:
    """Set the threads, and say who is left out."""
    if args.device == "cpu" and not args.smoke:
        torch.set_num_threads(2)
    if lightly is None:
        print("lightly is left out: it is not installed (pip install -e '.[bench]')")


def save_some(name: str, rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """Save rows in the place of the older ones of the same criteria and device."""
    name += "-cuda" if args.device == "cuda" else ""
    measure.save_some(name, rows, args.only, CASES, args.out)


def main() -> None:
    """Measure what the command line says."""
    args = criteria_parser(__doc__).parse_args()
    prepare(args)
    repeats = 1 if args.smoke else args.repeats
    rows = []
    for name in args.only:
        for n, d in [(8, 16), (16, 8)] if args.smoke else SHAPES:
            for dtype in ["float32", "bfloat16"] if args.device == "cuda" else ["float32"]:
                rows.append(compare(name, n, d, repeats, args.device, dtype))
                print(name, n, d, dtype, f"{rows[-1]['ours']:.4f} s", flush=True)
    save_some("criteria", rows, args)
    dense, large = ((8, 8), (16, 8)) if args.smoke else ((2048, 256), (16384, 256))
    rows = [against_dense(*dense, repeats, args.device)] if "SimCLR" in args.only else []
    rows += [alone(name, *large, repeats, args.device) for name in LARGE if name in args.only]
    if rows:
        save_some("batches", rows, args)


if __name__ == "__main__":
    main()
