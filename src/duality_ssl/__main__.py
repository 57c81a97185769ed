"""The command ``duality-ssl``, also ``python -m duality_ssl``."""

import os


def limit_spinning() -> None:
    """Let OpenMP threads spin less while they wait, unless the environment says how they wait.

    By default they leave no free core for other processes and the workers of a loader. Fewer spins
    cost an idle machine little (docs/benchmarks.md). The variable is read once, by `import torch`.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & {*os.environ}:
        os.environ["GOMP_SPINCOUNT"] = "1000"


def main() -> None:
    """Run the command with threads that leave the cores free while they wait."""
    limit_spinning()
    from duality_ssl.cli import main as run  # loads torch

    run()


if __name__ == "__main__":
    main()
