"""Standing gloo processes, for tests of what they compute together."""

import os
from collections.abc import Callable, Iterator
from itertools import count
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from helpers.forkserver import CONTEXT
from lightning.pytorch.plugins.environments import TorchElasticEnvironment


def _join(address: str, ranks: Any, world: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=ranks.get(), world_size=world)


def _call(job: tuple[Callable[..., Any], tuple[Any, ...]]) -> tuple[int, Any]:
    dist.barrier()  # one process cannot take both jobs
    function, arguments = job
    return dist.get_rank(), function(*arguments)


class Processes:
    """A process group that is started by the first ``run`` and stays.

    Args:
        world: Number of processes.
        folder: Where they meet.
    """

    def __init__(self, world: int, folder: Path) -> None:
        self.world, self.folder = world, folder
        self._pool: Pool | None = None
        self._starts = count()

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Call one function on all processes and return the results by rank.

        An error ends the processes, which may wait for each other; the next call starts new ones.
        """
        pool = self._pool = self._pool or self._start()
        try:
            jobs = [(function, arguments)] * self.world
            results = pool.map_async(_call, jobs, chunksize=1).get(timeout=120)
        except BaseException:
            self.end()
            raise
        return [result for _, result in sorted(results, key=lambda pair: pair[0])]

    def end(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.terminate()
            self._pool.join()
            self._pool = None

    def _start(self) -> Pool:
        ranks = CONTEXT.SimpleQueue()
        for rank in range(self.world):
            ranks.put(rank)
        address = (self.folder / f"rendezvous-{self.world}-{next(self._starts)}").as_uri()
        return CONTEXT.Pool(self.world, _join, (address, ranks, self.world))


def start_processes(world: int, folder: Path) -> Iterator[Processes]:
    """Processes of one module whose functions change their state; else use ``gloo_processes``."""
    group = Processes(world, folder)
    yield group
    group.end()


def trainer_options() -> dict[str, Any]:
    """What a ``Trainer`` takes to use the process group of this process, if there is one."""
    if not dist.is_initialized():
        return {"devices": 1}
    rank, world = dist.get_rank(), dist.get_world_size()
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"}
    os.environ |= {"WORLD_SIZE": str(world)}
    return {"devices": world, "strategy": "ddp", "plugins": [TorchElasticEnvironment()]}
