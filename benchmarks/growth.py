"""Time and memory of the criteria as the batch grows, and as the embedding does."""

from collections.abc import Sequence
from typing import Any

import torch
from criteria import (
    CASES,
    MOST_BYTES,
    MOST_SECONDS,
    Step,
    criteria_parser,
    lightly,
    ours,
    point,
    prepare,
    save_some,
    views,
)

SIZES = {"N": [2**k for k in range(8, 16)], "D": [2**k for k in range(8, 15)]}


def curve(
    name: str, who: str, grows: str, sizes: Sequence[int], repeats: int, device: str
) -> list[dict[str, Any]]:
    """One criterion along one axis, the other at its first size; lightly's ends where it is slow.

    That is foreseen from the last two points: it grows as it did, or as the square if that is more.
    """
    rows: list[dict[str, Any]] = []
    for size in sizes:
        n, d = (size, sizes[0]) if grows == "N" else (sizes[0], size)
        row = {"what": name, "who": who, "grows": grows, "n": n, "d": d}
        if who == "lightly" and rows:
            last, before = rows[-1], rows[-2] if len(rows) > 1 else rows[-1]
            foreseen = {
                key: last[key] * max(4, last[key] / before[key]) for key in ("seconds", "bytes")
            }
            for key, most, said in (
                ("bytes", MOST_BYTES, f"over {MOST_BYTES >> 30} GiB"),
                ("seconds", MOST_SECONDS, f"over {MOST_SECONDS:.0f} s"),
            ):
                if foreseen[key] > most:
                    return [*rows, {**row, "note": said}]
        loss = ours(CASES[name]) if who == "ours" else CASES[name].lightly()
        try:
            seconds, held = point(Step(loss, *views(n, d, device, torch.float32)), repeats)
        except RuntimeError as error:
            return [*rows, {**row, "note": f"fails: {str(error).partition('.')[0]}"}]
        rows.append({**row, "seconds": seconds, "bytes": held})
        print(name, who, n, d, f"{seconds:.4f} s", f"{held / 2**20:.0f} MiB", flush=True)
    return rows


def main() -> None:
    """Measure what the command line says."""
    args = criteria_parser(__doc__).parse_args()
    prepare(args)
    repeats = 1 if args.smoke else args.repeats
    rows = []
    for name in args.only:
        # -sq and -abs grow as the criteria that they are variants of.
        if not name.endswith(("-sq", "-abs")):
            for who in ("ours", "lightly") if CASES[name].lightly and lightly else ("ours",):
                for grows, sizes in SIZES.items():
                    sizes = [8, 16] if args.smoke else sizes
                    rows += curve(name, who, grows, sizes, repeats, args.device)
    save_some("growth", rows, args)


if __name__ == "__main__":
    main()
