"""Sweeps: grids of runs, tuned alike, each with a row of what it was and what it scored."""

from duality_ssl.sweeps.rows import append_row, read_rows
from duality_ssl.sweeps.runner import sweep

__all__ = ["append_row", "read_rows", "sweep"]
