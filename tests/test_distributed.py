"""Gloo processes that hold different rows of a batch must be one process that holds all of it."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers.criteria_cases import EXPORTED, VARIANTS, build
from helpers.gloo_processes import Processes, start_processes
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from duality_ssl import distributed
from duality_ssl.criteria import NSCL, WMSE, CorInfoMax
from duality_ssl.distributed import SINGLE, Group, process_group
from duality_ssl.functional._kernels import dispatch, logsumexp

WORLDS = [2, 3]
ROWS = 6  # of each process
TALL, WIDE = 4, 40  # dimensions, fewer and more than there are rows in any of the worlds
FORMULA = 2**62, dispatch._CACHED, logsumexp._KEPT  # smallest matrix, piece, tiles that are kept
KERNELS = 0, dispatch._CACHED, logsumexp._KEPT
IN_PIECES = 0, 16, 0


@pytest.fixture(scope="module", params=WORLDS, ids=lambda world: f"W{world}")
def worlds(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Processes]:
    yield from start_processes(request.param, tmp_path_factory.mktemp("group"))


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    yield from start_processes(3, tmp_path_factory.mktemp("group"))


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    yield from start_processes(2, tmp_path_factory.mktemp("group"))


@pytest.fixture(autouse=True)
def _forms_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what a test chose in this process; the others choose anew in every call."""
    monkeypatch.setattr(dispatch, "SMALLEST", dispatch.SMALLEST)


def global_batch(
    columns: int = 5, dtype: torch.dtype = torch.float64, world: int = 2
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = world * ROWS, columns
    x = torch.randn(shape, dtype=torch.float64, generator=generator)
    noise = torch.randn(shape, dtype=torch.float64, generator=generator)
    return x.to(dtype), (x + noise / 2).to(dtype)


def mine(x: Tensor) -> Tensor:
    return x[distributed.rank() * ROWS : (distributed.rank() + 1) * ROWS]


def choose(form: tuple[int, int, int]) -> None:
    """Have the formulas or the kernels compute, whatever the shape."""
    dispatch.SMALLEST, dispatch._CACHED, logsumexp._KEPT = form


def small_net(dimensions: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, dimensions))


def _ranks() -> tuple[int, int]:
    return distributed.rank(), distributed.world_size()


def test_ranks(processes: Processes) -> None:
    assert processes.run(_ranks) == [(0, 2), (1, 2)]


def _gather(dtype: torch.dtype, contiguous: bool) -> tuple[Tensor, Tensor]:
    z = mine(global_batch(dtype=dtype)[0]).detach()
    z = z if contiguous else z.T.contiguous().T
    z.requires_grad_()
    gathered = process_group().gather(z)
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


Loss = Callable[[Tensor, Tensor], dict[str, Tensor]]
Result = tuple[dict[str, float], list[Tensor]]


def _step(model: nn.Module, loss: Loss, x1: Tensor, x2: Tensor) -> Result:
    """Values of the terms, and the gradients that the optimiser would see."""
    z1, z2 = model(torch.cat([x1, x2])).chunk(2)
    terms = loss(z1, z2)
    terms["loss"].backward()
    values = {term: value.item() for term, value in terms.items()}
    return values, [p.grad for p in model.parameters() if p.grad is not None]


def _shared_step(
    name: str, arguments: dict[str, Any], dimensions: int, dtype: torch.dtype, form: Any
) -> Result:
    choose(form)
    model = DistributedDataParallel(small_net(dimensions).to(dtype))
    x1, x2 = global_batch(dtype=dtype, world=distributed.world_size())
    criterion, group = build(name, arguments), process_group()
    return _step(model, lambda *z: criterion(*z, group=group), mine(x1), mine(x2))


def assert_one(result: Result, expected: Result, rtol_values: float, rtol_grads: float) -> None:
    assert result[0] == pytest.approx(expected[0], rel=rtol_values, abs=rtol_values)
    scale = max(reference.abs().max().item() for reference in expected[1])
    assert scale > 1e-6
    for grad, reference in zip(result[1], expected[1], strict=True):
        torch.testing.assert_close(grad, reference, rtol=0, atol=rtol_grads * scale)


@pytest.mark.parametrize(("name", "arguments"), VARIANTS)
@pytest.mark.parametrize("dimensions", [TALL, WIDE], ids=["tall", "wide"])
@pytest.mark.parametrize(
    ("dtype", "form", "rtol_values", "rtol_grads"),
    [
        pytest.param(torch.float64, FORMULA, 1e-12, 1e-10, id="float64"),
        pytest.param(torch.float64, IN_PIECES, 1e-12, 1e-10, id="float64-in-pieces"),
        pytest.param(torch.float32, KERNELS, 1e-5, 1e-5, id="float32"),
    ],
)
def test_processes_are_one(
    worlds: Processes,
    name: str,
    arguments: dict[str, Any],
    dimensions: int,
    dtype: torch.dtype,
    form: tuple[int, int, int],
    rtol_values: float,
    rtol_grads: float,
) -> None:
    model = small_net(dimensions).double()
    expected = _step(model, build(name, arguments), *global_batch(world=worlds.world))
    expected = expected[0], [grad.to(dtype) for grad in expected[1]]
    for result in worlds.run(_shared_step, name, arguments, dimensions, dtype, form):
        assert_one(result, expected, rtol_values, rtol_grads)


def _remembered(world: int) -> dict[str, Tensor]:
    """The state after two steps of this process's rows."""
    criterion, group = CorInfoMax(TALL), process_group()
    own = group.own(world * ROWS // group.world_size)
    z1, z2 = (z[own] for z in global_batch(TALL, world=world))
    criterion(z1, z2, group=group)
    criterion(z2, -z1, group=group)
    return criterion.state_dict()


def test_processes_remember_what_one_does(worlds: Processes) -> None:
    expected = _remembered(worlds.world)
    states = worlds.run(_remembered, worlds.world)
    for state in states:
        torch.testing.assert_close(state, expected, rtol=1e-12, atol=1e-14)
        assert all(torch.equal(state[name], states[0][name]) for name in state)


def _whitened(w_size: int | None, world: int) -> tuple[float, Tensor]:
    """Value, and the gradient in this process's rows as data parallel averages it."""
    group = process_group()
    own = group.own(world * ROWS // group.world_size)
    z1, z2 = (z[own].clone().requires_grad_() for z in global_batch(TALL, world=world))
    loss = WMSE(w_size)(z1, z2, step=5, group=group)["loss"]
    (gradient,) = torch.autograd.grad(loss, z1)
    return loss.item(), gradient / group.world_size


@pytest.mark.parametrize("w_size", [None, ROWS], ids=["whole batch", "sub-batches"])
def test_whitening_processes_are_one(worlds: Processes, w_size: int | None) -> None:
    """Random sub-batches have rows of all processes."""
    value, gradient = _whitened(w_size, worlds.world)
    results = worlds.run(_whitened, w_size, worlds.world)
    assert [loss for loss, _ in results] == pytest.approx([value] * worlds.world, rel=1e-12)
    got = torch.cat([grad for _, grad in results])
    torch.testing.assert_close(got, gradient, rtol=1e-10, atol=1e-12)


def _compiled_step(name: str, dimensions: int) -> Result:
    choose(KERNELS)
    model = DistributedDataParallel(small_net(dimensions).double())
    criterion, group = build(name), process_group()
    criterion.compile(backend="aot_eager")
    return _step(model, lambda *z: criterion(*z, group=group), *map(mine, global_batch()))


@pytest.mark.parametrize("name", ["VICReg", "BarlowTwins", "TCR", "SimCLR"])
def test_compiled_processes_are_one(processes: Processes, name: str) -> None:
    expected = _step(small_net(WIDE).double(), build(name), *global_batch())
    for result in processes.run(_compiled_step, name, WIDE):
        assert_one(result, expected, 1e-12, 1e-10)


def _gradient_of_differing_losses(name: str, arguments: dict[str, Any], d: int) -> Tensor:
    z1, z2 = (mine(z).clone().requires_grad_() for z in global_batch(d))
    choose(KERNELS)
    terms = build(name, arguments)(z1, z2, group=process_group())
    (terms["loss"] * (distributed.rank() + 1)).backward()
    assert z1.grad is not None
    return z1.grad


@pytest.mark.parametrize(("name", "arguments"), VARIANTS)
@pytest.mark.parametrize("dimensions", [TALL, WIDE], ids=["tall", "wide"])
def test_the_gradient_is_the_adjoint(
    processes: Processes, name: str, arguments: dict[str, Any], dimensions: int
) -> None:
    """Processes that weigh the loss differently: the gradients of their sum come out."""
    z1, z2 = (z.requires_grad_() for z in global_batch(dimensions))
    (build(name, arguments)(z1, z2)["loss"] * (1 + 2)).backward()
    assert z1.grad is not None
    grads = processes.run(_gradient_of_differing_losses, name, arguments, dimensions)
    torch.testing.assert_close(torch.cat(grads), z1.grad, rtol=1e-10, atol=1e-12)


def _second_derivative(name: str, d: int, form: tuple[int, int, int]) -> Tensor:
    """Gradient in this process's rows of the squared gradient's sum over all processes."""
    choose(form)
    z1, z2 = (mine(z).clone().requires_grad_() for z in global_batch(d))
    loss = build(name)(z1, z2, group=process_group())["loss"]
    (gradient,) = torch.autograd.grad(loss, z1, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), z1)
    return second


@pytest.mark.parametrize("name", EXPORTED)
@pytest.mark.parametrize("dimensions", [TALL, WIDE], ids=["tall", "wide"])
@pytest.mark.parametrize("form", [FORMULA, KERNELS], ids=["formula", "kernels"])
def test_second_derivative_of_processes(
    processes: Processes, name: str, dimensions: int, form: tuple[int, int, int]
) -> None:
    z1, z2 = (z.requires_grad_() for z in global_batch(dimensions))
    loss = 2 * build(name)(z1, z2)["loss"]  # the sum of both processes' losses
    (gradient,) = torch.autograd.grad(loss, z1, create_graph=True)
    (expected,) = torch.autograd.grad(gradient.square().sum(), z1)
    seconds = torch.cat(processes.run(_second_derivative, name, dimensions, form))
    torch.testing.assert_close(seconds, expected, rtol=1e-9, atol=1e-9 * expected.abs().max())


def _in_subgroup(name: str, d: int) -> tuple[int, float, Tensor] | None:
    """The last two of three processes share a batch; the first has no part in it."""
    choose(KERNELS)
    members = dist.new_group([1, 2])
    if distributed.rank() == 0:
        with pytest.raises(ValueError, match="Expected a group that has this process, rank 0"):
            process_group(members)
        return None
    group = process_group(members)
    assert group.world_size == 2
    z1, z2 = (z[group.own(ROWS)].clone().requires_grad_() for z in global_batch(d))
    loss = build(name)(z1, z2, group=group)["loss"]
    loss.backward()
    assert z1.grad is not None
    return group.rank, loss.item(), z1.grad / group.world_size


@pytest.mark.parametrize("name", EXPORTED)
@pytest.mark.parametrize("dimensions", [TALL, WIDE], ids=["tall", "wide"])
def test_a_subgroup_is_one_process_with_its_rows(
    three: Processes, name: str, dimensions: int
) -> None:
    z1, z2 = (z.requires_grad_() for z in global_batch(dimensions))
    loss = build(name)(z1, z2)["loss"]
    loss.backward()
    assert z1.grad is not None
    outsider, *members = three.run(_in_subgroup, name, dimensions)
    assert outsider is None
    for rank, (own, value, grad) in enumerate(members):
        assert own == rank
        assert value == pytest.approx(loss.item(), rel=1e-12)
        expected = z1.grad[rank * ROWS : (rank + 1) * ROWS]
        torch.testing.assert_close(grad, expected, rtol=1e-10, atol=1e-12)


class _Messages:
    """Elements of the largest message that ``torch.distributed`` was given."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.largest = 0
        for name in ("all_gather_into_tensor", "reduce_scatter_tensor", "all_reduce"):
            patch.setattr(dist, name, self._counted(getattr(dist, name)))

    def _counted(self, collective: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*tensors: Tensor, group: Any) -> Any:
            self.largest = max(self.largest, *(tensor.numel() for tensor in tensors))
            return collective(*tensors, group=group)

        return counted


def _addmm_flops(to: Any, a: Any, b: Any, **_: Any) -> int:
    return 2 * a[0] * a[1] * b[1]


def _flops(name: str, arguments: dict[str, Any], d: int, rows: int) -> tuple[int, int]:
    """Floating-point operations of a step's products, and the elements of the largest message."""
    choose(KERNELS)
    group = process_group()
    views = torch.randn(2, rows, d, generator=torch.Generator().manual_seed(group.rank))
    z1, z2 = (z.clone().requires_grad_() for z in views)
    in_place = {torch.ops.aten.addmm_: _addmm_flops}  # which the counter does not know
    with pytest.MonkeyPatch.context() as patch:
        messages = _Messages(patch)
        with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
            build(name, arguments)(z1, z2, group=group)["loss"].backward()
    return counter.get_total_flops(), messages.largest


NO_PRODUCTS = {"DINO", "Regression"}  # nothing but elementwise work on each process's own rows


@pytest.mark.parametrize(
    ("name", "arguments"), [case for case in VARIANTS if case.values[0] not in NO_PRODUCTS]
)
@pytest.mark.parametrize("dimensions", [12, 96], ids=["tall", "wide"])
def test_processes_share_the_work(
    worlds: Processes, name: str, arguments: dict[str, Any], dimensions: int
) -> None:
    batch = 48
    alone, nothing_sent = _flops(name, arguments, dimensions, batch)
    assert alone > 0
    assert nothing_sent == 0
    rows = batch // worlds.world
    for flops, largest in worlds.run(_flops, name, arguments, dimensions, rows):
        # each process computes the eigenvectors' products of the smaller side
        eigenvectors = 4 * min(batch, dimensions) ** 3 if name == "MMCR" else 0
        assert flops <= alone / worlds.world + eigenvectors
        if name in ("VICReg", "VIbCReg", "FroSSL", "BarlowTwins", "TCR", "SpectralContrastive"):
            assert largest == dimensions * min(batch, dimensions)
        else:  # an exponential has no second side
            assert largest <= 2 * batch * dimensions


def _barlow_without_backward(z1: Tensor, z2: Tensor) -> Tensor:
    """An all-reduce in place, which autograd does not see."""
    correlation = z1.T @ z2 / (len(z1) * distributed.world_size())
    with torch.no_grad():
        dist.all_reduce(correlation)
    return (correlation - torch.eye(len(correlation))).square().sum()


def _local(z1: Tensor, z2: Tensor) -> Tensor:
    """Every process by itself."""
    correlation = z1.T @ z2 / len(z1)
    return (correlation - torch.eye(len(correlation))).square().sum()


def _known_failure(loss: Callable[[Tensor, Tensor], Tensor], whole: bool) -> Result:
    """A step with ``loss`` on these rows, or on the whole batch on one process."""
    x1, x2 = global_batch()
    if whole:
        return _step(small_net(TALL).double(), lambda *z: {"loss": _local(*z)}, x1, x2)
    model = DistributedDataParallel(small_net(TALL).double())
    return _step(model, lambda *z: {"loss": loss(*z)}, mine(x1), mine(x2))


@pytest.mark.parametrize(
    ("loss", "right_value"),
    [(_barlow_without_backward, True), (_local, False)],
    ids=["all-reduce-without-backward", "local-statistics"],
)
def test_known_failures_are_found(
    processes: Processes, loss: Callable[[Tensor, Tensor], Tensor], right_value: bool
) -> None:
    """The mistakes of published code fail :func:`assert_one`."""
    expected = _known_failure(_local, whole=True)
    for result in processes.run(_known_failure, loss, False):
        if right_value:  # the value hides it
            assert result[0] == pytest.approx(expected[0])
        with pytest.raises(AssertionError):
            assert_one(result, expected, 1e-12, 1e-10)


class _OwnSlice(Group):
    """A group whose gather gives a gradient to this process's own slice only."""

    def gather(self, x: Tensor) -> Tensor:
        gathered = self.all_gather(x)
        return torch.cat([gathered[: self.own(len(x)).start], x, gathered[self.own(len(x)).stop :]])


def _own_slice_step(name: str, dimensions: int) -> Result:
    choose(FORMULA)
    model = DistributedDataParallel(small_net(dimensions).double())
    criterion, group = build(name), _OwnSlice(*process_group())
    return _step(model, lambda *z: criterion(*z, group=group), *map(mine, global_batch()))


@pytest.mark.parametrize("name", ["NSCL", "SupCon"])
def test_a_gather_with_its_own_slices_gradient_is_found(processes: Processes, name: str) -> None:
    """The gather of public code: the value is right, the gradient is not."""
    expected = _step(small_net(TALL).double(), build(name), *global_batch())
    for result in processes.run(_own_slice_step, name, TALL):
        assert result[0] == pytest.approx(expected[0])
        with pytest.raises(AssertionError):
            assert_one(result, expected, 1e-12, 1e-10)


def _one_class_on_this_process(labels: list[int]) -> str:
    z1, z2 = map(mine, global_batch())
    try:
        NSCL()(z1, z2, group=process_group(), labels=mine(torch.tensor(labels)))
    except ValueError as error:
        return str(error)
    return "no error"


def test_classes_are_counted_over_the_processes(processes: Processes) -> None:
    each_another = [0] * ROWS + [1] * ROWS
    assert processes.run(_one_class_on_this_process, each_another) == ["no error"] * 2
    for said in processes.run(_one_class_on_this_process, [1] * 2 * ROWS):
        assert "all 12 of the batch are of class 1" in said
    for said in processes.run(_one_class_on_this_process, [-1] + [1] * (2 * ROWS - 1)):
        assert "but got -1" in said


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


def test_own_rows_are_those_that_gather_puts_together() -> None:
    rows = [i for rank in range(3) for i in range(12)[Group(rank, 3).own(4)]]
    assert rows == list(range(12))


def test_without_a_process_group_there_is_one_process() -> None:
    z = torch.rand(3, 2, requires_grad=True)
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    group = process_group()
    assert group == SINGLE
    assert all(x is z for x in (group.gather(z), group.all_gather(z), group.sum(z)))
    assert group.mean(z) == z.mean()
    assert group.own(3) == slice(0, 3)
    assert torch.equal(distributed.all_gather_rows(z), z)
    assert not distributed.all_gather_rows(z).requires_grad
    total = distributed.all_reduce_sum(z)
    assert torch.equal(total, z)
    assert total.data_ptr() != z.data_ptr()
    parameter = nn.Parameter(torch.zeros(2))
    distributed.average_gradients([parameter])
    assert parameter.grad is None
