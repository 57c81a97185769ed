"""The bounds of the benchmarks, and whether they are met."""

from collections.abc import Callable
from typing import Any, NamedTuple

Row = dict[str, Any]
MIB, GIB = 2**20, 2**30


class Target(NamedTuple):
    """A bound for the rows of a file, from below or from above."""

    text: str
    bound: float
    source: str
    key: str
    where: Callable[[Row], bool] = lambda row: True
    at_most: bool = False
    unit: str = "x"
    scale: float = 1

    def judged(self, rows: list[Row]) -> Row:
        """Return the least favorable figure, its row, and whether it meets the bound."""
        reach = f"{'at most' if self.at_most else 'at least'} {self.bound:g}{self.unit}"
        line: Row = {"what": self.text, "reach": reach}
        meant = [row for row in rows if self.key in row and self.where(row)]
        if not meant:
            return {**line, "measured": "not measured", "reached": "?"}
        worst = (max if self.at_most else min)(meant, key=lambda row: row[self.key])
        value = worst[self.key] / self.scale
        good = value <= self.bound if self.at_most else value >= self.bound
        if len(meant) > 1:
            shape = f" ({worst['n']:,}, {worst['d']:,})" if "n" in worst else ""
            line["least favourable"] = f"{worst['what']}{shape}"
        return {
            **line,
            "measured": f"{value:.3g}{self.unit}",
            "reached": "yes" if good else "**no**",
        }


def at(n: int, d: int, *names: str) -> Callable[[Row], bool]:
    """Choose the rows of these criteria at this shape."""
    return lambda row: (row["n"], row["d"]) == (n, d) and row["what"] in names


def of(*names: str) -> Callable[[Row], bool]:
    """Choose the rows whose name starts with one of these."""
    return lambda row: row["what"].startswith(names)


def _ours(row: Row) -> bool:
    return bool(row["waiting"] == "the command's")


DUAL = ("VICReg", "Barlow Twins", "TCR", "Spectral contrastive")
VICREG_LONG, BARLOW_LONG = at(256, 8192, "VICReg"), at(256, 8192, "Barlow Twins")
TARGETS = [
    Target("VICReg at (256, 8192): lightly's time", 80, "criteria", "times_lightly", VICREG_LONG),
    Target(
        "VICReg at (256, 8192): the textbook form's time",
        *(80, "criteria", "times_textbook", VICREG_LONG),
    ),
    Target(
        "Barlow Twins at (256, 8192): lightly's time",
        *(40, "criteria", "times_lightly", BARLOW_LONG),
    ),
    Target(
        "VICReg at (1024, 8192): the fastest peer's time",
        *(10, "criteria", "times_fastest", at(1024, 8192, "VICReg")),
    ),
    Target(
        "Barlow Twins at (1024, 8192): the fastest peer's time",
        *(6, "criteria", "times_fastest", at(1024, 8192, "Barlow Twins")),
    ),
    Target("every criterion and shape: the fastest peer's time", 1, "criteria", "times_fastest"),
    Target(
        "every criterion and shape: time over own products, if the floor is over 5 ms",
        *(1.5, "criteria", "of_products", lambda row: row["floor"] > 5e-3),
        at_most=True,
    ),
    Target(
        "VICReg, Barlow Twins, TCR, spectral: memory over the allowance",
        *(1, "criteria", "of_allowance", lambda row: row["what"] in DUAL),
        at_most=True,
    ),
    Target(
        "SimCLR, -sq, DCL at (16384, 256): extra memory",
        *(1.5, "batches", "ours_bytes", lambda row: row["n"] == 16384, True, " GiB", GIB),
    ),
    Target(
        "SimCLR at (2048, 256): the dense form's time",
        *(1, "batches", "times_dense", at(2048, 256, "SimCLR")),
    ),
    Target(
        "VICReg-exp at (256, 8192): extra memory",
        *(300, "criteria", "ours_bytes", at(256, 8192, "VICReg-exp"), True, " MiB", MIB),
    ),
    *(
        Target(
            f"augmentation {size}: {peer}'s time", bound, "augmentation", f"times_{key}", of(size)
        )
        for size, bounds in (("32 px", (8, 4)), ("224 px", (5, 4)))
        for bound, peer, key in zip(bounds, ("PIL", "kornia"), ("pil", "kornia"), strict=True)
    ),
    Target(
        "LARS on ResNet-50: the fastest peer's time", 1, "optimizers", "times_fastest", of("LARS")
    ),
    *(
        Target(f"fit at {size} px: {text}", bound, "training", key, of(f"{size}px"))
        for size in (32, 224)
        for text, bound, key in (
            ("time of a bare loop", 0.95, "times_bare"),
            ("time of lightly's example", 1, "times_lightly"),
        )
    ),
    Target(
        "`import duality_ssl`",
        *(50, "startup", "seconds", of("`import duality_ssl`"), True, " ms", 1e-3),
    ),
    Target(
        "`duality-ssl --help` over Lightning's import",
        *(1.15, "startup", "ratio", of("`duality-ssl --help`"), True),
    ),
    *(
        Target(f"fit {when}: its speed alone with OpenMP's default", bound, "threads", key, _ours)
        for when, bound, key in (
            ("alone", 0.88, "alone_ratio"),
            ("beside a busy process", 0.45, "beside_ratio"),
        )
    ),
]


def reached(read: Callable[[str], list[Row]]) -> list[Row]:
    """Compare every target with the rows that ``read`` returns for its file."""
    return [target.judged(read(target.source)) for target in TARGETS]
