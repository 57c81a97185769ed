"""Two gloo processes that hold different data must be one process that holds all of it."""

import multiprocessing
from collections.abc import Callable, Iterator
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from test_criteria import VARIANTS, build
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from duality_ssl import distributed

WORLD = 2
ROWS = 6  # of each process


def _join(address: str, ranks: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=ranks.get(), world_size=WORLD)


def _call(job: tuple[Callable[..., Any], tuple[Any, ...]]) -> tuple[int, Any]:
    dist.barrier()  # one process cannot take both jobs
    function, arguments = job
    return dist.get_rank(), function(*arguments)


class Processes:
    """Two processes that stay; ``run`` calls one function on both and returns by rank."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        jobs = [(function, arguments)] * WORLD
        results = self.pool.map_async(_call, jobs, chunksize=1).get(timeout=60)
        return [result for _, result in sorted(results, key=lambda pair: pair[0])]


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    context = multiprocessing.get_context("spawn")
    ranks = context.SimpleQueue()
    for rank in range(WORLD):
        ranks.put(rank)
    address = Path(tmp_path_factory.mktemp("group"), "rendezvous").as_uri()
    with context.Pool(WORLD, _join, (address, ranks)) as pool:
        yield Processes(pool)


def global_batch(columns: int = 5, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(WORLD * ROWS, columns, dtype=torch.float64, generator=generator)
    noise = torch.randn(WORLD * ROWS, columns, dtype=torch.float64, generator=generator)
    return x.to(dtype), (x + noise / 2).to(dtype)


def mine(x: Tensor) -> Tensor:
    return x[distributed.rank() * ROWS : (distributed.rank() + 1) * ROWS]


def small_net(dimensions: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, dimensions)).double()


def _ranks() -> tuple[int, int]:
    return distributed.rank(), distributed.world_size()


def test_ranks(processes: Processes) -> None:
    assert processes.run(_ranks) == [(0, WORLD), (1, WORLD)]


def _gather(dtype: torch.dtype, contiguous: bool) -> tuple[Tensor, Tensor]:
    z = mine(global_batch(dtype=dtype)[0]).detach()
    z = z if contiguous else z.T.contiguous().T
    z.requires_grad_()
    gathered = distributed.gather(z)
    # A loss of its own on each process: the adjoint sums their gradients of this process's rows.
    weights = torch.arange(gathered.numel(), dtype=dtype).view_as(gathered) / 8
    ((distributed.rank() + 1) * weights * gathered).sum().backward()
    assert z.grad is not None
    return gathered.detach(), z.grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("contiguous", [True, False], ids=["contiguous", "transposed"])
def test_gather_value_and_adjoint(
    processes: Processes, dtype: torch.dtype, contiguous: bool
) -> None:
    expected = global_batch(dtype=dtype)[0]
    weights = torch.arange(expected.numel(), dtype=dtype).view_as(expected) / 8
    for rank, (gathered, grad) in enumerate(processes.run(_gather, dtype, contiguous)):
        assert torch.equal(gathered, expected)
        rows = weights[rank * ROWS : (rank + 1) * ROWS]
        torch.testing.assert_close(grad, (1 + 2) * rows)


def _second_derivative() -> str:
    z = mine(global_batch()[0]).detach().requires_grad_()
    loss = distributed.gather(z).pow(3).sum()
    (gradient,) = torch.autograd.grad(loss, z, create_graph=True)
    try:
        gradient.sum().backward()
    except RuntimeError as error:
        return str(error)
    return "no error"


def test_second_derivative_of_gather_is_refused(processes: Processes) -> None:
    for message in processes.run(_second_derivative):
        assert "once_differentiable" in message


def _train_step(name: str, arguments: dict[str, Any], dimensions: int) -> tuple[Any, list[Tensor]]:
    model = DistributedDataParallel(small_net(dimensions))
    x1, x2 = global_batch()
    z1, z2 = model(torch.cat([mine(x1), mine(x2)])).chunk(2)
    terms = build(name, arguments)(distributed.gather(z1), distributed.gather(z2))
    terms["loss"].backward()
    values = {term: value.item() for term, value in terms.items()}
    return values, [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize(("name", "arguments"), VARIANTS)
@pytest.mark.parametrize("dimensions", [4, 16], ids=["tall", "wide"])
def test_two_processes_are_one(
    processes: Processes, name: str, arguments: dict[str, Any], dimensions: int
) -> None:
    model = small_net(dimensions)
    z1, z2 = (model(x) for x in global_batch())
    terms = build(name, arguments)(z1, z2)
    terms["loss"].backward()
    expected = [parameter.grad for parameter in model.parameters()]
    assert max(grad.abs().max() for grad in expected if grad is not None) > 1e-6
    for values, gradients in processes.run(_train_step, name, arguments, dimensions):
        assert values == pytest.approx({term: value.item() for term, value in terms.items()})
        torch.testing.assert_close(gradients, expected, rtol=1e-9, atol=1e-12)


def test_local_statistics_would_be_noticed() -> None:
    """The test above can fail: the mean of two half batches' losses is another number."""
    x1, x2 = global_batch()
    for parameter in VARIANTS:
        criterion = build(*parameter.values)
        halves = [
            criterion(a, b)["loss"] for a, b in zip(x1.split(ROWS), x2.split(ROWS), strict=True)
        ]
        assert abs(sum(halves) / 2 - criterion(x1, x2)["loss"]) > 1e-6, parameter.id


def _all_gather_rows(sizes: list[int], dtype: torch.dtype) -> Tensor:
    rank = distributed.rank()
    x = (100 * rank + torch.arange(2 * sizes[rank])).view(-1, 2).to(dtype)
    return distributed.all_gather_rows(x)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32], ids=str)
@pytest.mark.parametrize("sizes", [[3, 3], [1, 4], [0, 2], [2, 0], [0, 0]], ids=str)
def test_all_gather_rows_of_uneven_counts(
    processes: Processes, sizes: list[int], dtype: torch.dtype
) -> None:
    parts = [(100 * rank + torch.arange(2 * size)).view(-1, 2) for rank, size in enumerate(sizes)]
    for gathered in processes.run(_all_gather_rows, sizes, dtype):
        assert torch.equal(gathered, torch.cat(parts).to(dtype))


def _all_reduce_sum() -> tuple[Tensor, Tensor]:
    x = torch.tensor([1.0, 2.0]) * (distributed.rank() + 1)
    return distributed.all_reduce_sum(x), x


def test_all_reduce_sum_leaves_its_argument(processes: Processes) -> None:
    for rank, (total, x) in enumerate(processes.run(_all_reduce_sum)):
        assert total.tolist() == [3.0, 6.0]
        assert x.tolist() == [1.0 * (rank + 1), 2.0 * (rank + 1)]


def _average_gradients() -> list[Tensor | None]:
    rank = distributed.rank()
    parameters = [
        nn.Parameter(torch.zeros(2, 3)),
        nn.Parameter(torch.zeros(4, dtype=torch.float64)),
        nn.Parameter(torch.zeros(1)),
        nn.Parameter(torch.zeros(5), requires_grad=False),
    ]
    parameters[0].grad = torch.full((3, 2), 1.0 + rank).T  # not contiguous
    parameters[1].grad = torch.arange(4, dtype=torch.float64) * (1 + rank)
    if rank == 1:  # the other process had no labels for it
        parameters[2].grad = torch.ones(1)
    distributed.average_gradients(iter(parameters))
    return [parameter.grad for parameter in parameters]


def test_average_gradients(processes: Processes) -> None:
    for grads in processes.run(_average_gradients):
        assert torch.equal(grads[0], torch.full((2, 3), 1.5))
        assert torch.equal(grads[1], 1.5 * torch.arange(4, dtype=torch.float64))
        assert torch.equal(grads[2], torch.tensor([0.5]))
        assert grads[3] is None


def test_without_a_process_group_there_is_one_process() -> None:
    z = torch.rand(3, 2, requires_grad=True)
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert distributed.gather(z) is z
    assert torch.equal(distributed.all_gather_rows(z), z)
    assert not distributed.all_gather_rows(z).requires_grad
    total = distributed.all_reduce_sum(z)
    assert torch.equal(total, z)
    assert total.data_ptr() != z.data_ptr()
    parameter = nn.Parameter(torch.zeros(2))
    distributed.average_gradients([parameter])
    assert parameter.grad is None
