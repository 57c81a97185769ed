"""The commands without a network to train: ``duality-ssl sweep|report|export``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

TOOLS = {
    "sweep": "Run a grid of fits and tests, and collect a row of scores a run.",
    "report": "Draw rows of scores as one HTML page, and Markdown.",
    "export": "Write the backbone of a run for torchvision, timm, safetensors or ONNX.",
}


def run_tool(words: Sequence[str]) -> None:
    """Run the command that the first word names, one of `TOOLS`."""
    options = vars(_parser().parse_args(words))
    name = options.pop("command")
    if name == "sweep":
        from duality_ssl.cli.command import main
        from duality_ssl.sweeps import sweep

        sweep(**options, command=main)
    elif name == "report":
        from duality_ssl.reports import report

        report(**options)
    else:
        from duality_ssl.runs.export import export

        export(**options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="duality-ssl", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    added = {
        name: commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        for name, text in TOOLS.items()
    }
    sweep, report, export = added.values()
    sweep.add_argument("file", type=Path, help="such as configs/sweeps/figure_1.yaml")
    sweep.add_argument("--jobs", type=int, metavar="N", help="runs at once (default: 1)")
    sweep.add_argument("--rows", type=Path, help="default: runs/sweeps/NAME/rows.jsonl")
    sweep.add_argument("--dry-run", action="store_true", help="print the commands, run nothing")
    sweep.add_argument("--rerun", action="store_true", help="repeat the runs of other versions")
    sweep.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="AXIS=LABEL",
        help="a part of the grid; may be given several times",
    )
    sweep.add_argument("--select", metavar="SCORE", help="tune by this score, such as rankme")
    sweep.add_argument("--tune-only", action="store_true", help="stop after tuning")
    report.add_argument("paths", type=Path, nargs="+", help="JSONL files of rows, or folders")
    report.add_argument("--out", type=Path, help="folder; by default report/ beside the first path")
    export.add_argument("run", type=Path, help="folder of a run, or a checkpoint")
    export.add_argument("--to", required=True, help="torchvision, timm, safetensors or onnx")
    export.add_argument("--out", type=Path, help="the file; by default beside the checkpoint")
    return parser
