"""The command ``duality-ssl``, also ``python -m duality_ssl``."""

import os

# Threads of OpenMP that wait for work turn in a loop, by default so long that a busy neighbour, or
# a worker of a loader, finds no core. Fewer turns cost a quiet machine little: docs/benchmarks.md.
_SPIN_COUNT = "1000"


def limit_spinning() -> None:
    """Set ``GOMP_SPINCOUNT``, unless the environment says already how threads wait.

    GNU's OpenMP, which PyTorch has on Linux, reads it once, when torch is loaded.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & {*os.environ}:
        os.environ["GOMP_SPINCOUNT"] = _SPIN_COUNT


def main() -> None:
    """Run the command line, with threads that leave the cores to others while they wait."""
    limit_spinning()
    from duality_ssl.cli import main as run  # loads torch

    run()


if __name__ == "__main__":
    main()
