"""Which of Lightning's strategies a method can train under."""

import re

from lightning import Trainer
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    SingleDeviceStrategy,
    Strategy,
)

from duality_ssl.distributed import world_size


def check_strategy(strategy: str | Strategy) -> None:
    """Refuse a strategy that does not leave each process the whole network.

    Args:
        strategy: A name, as the command line takes it, or an instance.

    Raises:
        ValueError: For FSDP, DeepSpeed and the like; by name also for ``ddp_spawn``, which would
            have to pickle the callbacks of the command.
    """
    if isinstance(strategy, str):
        name, fits = strategy, re.match(r"auto$|ddp(?!_spawn)", strategy) is not None
    else:
        name, fits = type(strategy).__name__, isinstance(strategy, _WHOLE_NETWORK)
    if not fits or isinstance(strategy, DeepSpeedStrategy):
        raise ValueError(
            f"Expected --trainer.strategy ddp (or auto), but got {name}: criteria, probes, LARS "
            "and checkpoints need the whole network in each process."
        )


_WHOLE_NETWORK = SingleDeviceStrategy | DDPStrategy


def check_processes(trainer: Trainer) -> None:
    """Raise ``ValueError`` unless ``torch.distributed`` has the trainer's number of processes.

    Otherwise, as under the strategy for TPUs, each would compute its criterion alone.
    """
    if trainer.world_size != world_size():
        raise ValueError(
            f"Expected torch.distributed to know the {trainer.world_size} processes of "
            f"{type(trainer.strategy).__name__}, but it knows {world_size()}. "
            "Set --trainer.strategy ddp."
        )
