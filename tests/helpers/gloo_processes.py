"""Processes over gloo that stay, for tests of what they compute together."""

import multiprocessing
from collections.abc import Callable, Iterator
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def _join(address: str, ranks: Any, world: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=ranks.get(), world_size=world)


def _call(job: tuple[Callable[..., Any], tuple[Any, ...]]) -> tuple[int, Any]:
    dist.barrier()  # one process cannot take both jobs
    function, arguments = job
    return dist.get_rank(), function(*arguments)


class Processes:
    """Processes that stay; ``run`` calls one function on all and returns by rank."""

    def __init__(self, pool: Pool, world: int) -> None:
        self.pool = pool
        self.world = world

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        jobs = [(function, arguments)] * self.world
        results = self.pool.map_async(_call, jobs, chunksize=1).get(timeout=120)
        return [result for _, result in sorted(results, key=lambda pair: pair[0])]


def start_processes(world: int, folder: Path) -> Iterator[Processes]:
    """Start them; a fixture ends them."""
    context = multiprocessing.get_context("spawn")
    ranks = context.SimpleQueue()
    for rank in range(world):
        ranks.put(rank)
    with context.Pool(world, _join, ((folder / "rendezvous").as_uri(), ranks, world)) as pool:
        yield Processes(pool, world)
