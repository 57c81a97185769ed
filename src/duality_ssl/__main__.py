"""The command ``duality-ssl``, also ``python -m duality_ssl``."""

import os

# OpenMP threads spin while they wait for work, by default so long that other processes, or the
# workers of a loader, find no free core. Fewer spins cost an idle machine little:
# docs/benchmarks.md.
_SPIN_COUNT = "1000"


def limit_spinning() -> None:
    """Set ``GOMP_SPINCOUNT``, unless the environment says how threads wait.

    GNU OpenMP, which PyTorch uses on Linux, reads it once, when torch is loaded.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & {*os.environ}:
        os.environ["GOMP_SPINCOUNT"] = _SPIN_COUNT


def main() -> None:
    """Run the command with threads that leave the cores free while they wait."""
    limit_spinning()
    from duality_ssl.cli import main as run  # loads torch

    run()


if __name__ == "__main__":
    main()
