"""Sweeps: grids of runs, tuned alike, each with a row of what it was and what it scored."""

from duality_ssl.sweeps.rows import append_row, read_rows
from duality_ssl.sweeps.runner import add_arguments, sweep

__all__ = ["add_arguments", "append_row", "read_rows", "sweep"]
