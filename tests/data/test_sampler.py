"""Order, shards and seeds of batches; subsets."""

import itertools
from collections.abc import Callable

import pytest
import torch

from duality_ssl.data.sampler import EvalBatches, TrainBatches, draw_subset
from duality_ssl.randomness import derive_seed


@pytest.mark.parametrize(("n", "batch", "world"), [(103, 8, 3), (64, 8, 2), (48, 16, 3)])
def test_processes_share_the_one_process_order(
    n: int, batch: int, world: int, pretend_processes: Callable[[int, int], None]
) -> None:
    pretend_processes(0, 1)
    single = [request.indices.tolist() for request in TrainBatches(range(n), batch * world, 3)]
    shards, seeds = [], set()
    for rank in range(world):
        pretend_processes(rank, world)
        requests = list(TrainBatches(range(n), batch, 3))
        assert len(requests) == len(single) == n // (batch * world)
        shards.append([request.indices.tolist() for request in requests])
        seeds |= {request.seed for request in requests}
    joined = [list(itertools.chain(*parts)) for parts in zip(*shards, strict=True)]
    assert joined == single
    assert len(seeds) == len(single)  # each process has its part of what is drawn for the batch


def test_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = TrainBatches(range(50), 5, seed)
        sampler.set_epoch(epoch)
        return [i for request in sampler for i in request.indices.tolist()]

    assert sorted(order(0, 0)) == list(range(50))
    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(s, e)) for s in range(3) for e in range(3)}) == 9


def test_every_batch_of_every_epoch_is_augmented_otherwise() -> None:
    seeds = []
    for seed, epoch in itertools.product(range(2), range(3)):
        sampler = TrainBatches(range(50), 5, seed)
        sampler.set_epoch(epoch)
        seeds += [request.seed for request in sampler]
    assert len(set(seeds)) == len(seeds) == 2 * 3 * 10


@pytest.mark.parametrize(
    ("n", "batch", "world"),
    [(360, 256, 1), (17, 4, 2), (16, 8, 2), (9, 4, 4), (7, 1, 3), (5, 8, 4), (65, 32, 2)],
)
def test_evaluation_sees_every_sample_once(
    n: int, batch: int, world: int, pretend_processes: Callable[[int, int], None]
) -> None:
    seen, lengths = [], []
    for rank in range(world):
        pretend_processes(rank, world)
        sampler = EvalBatches(range(n), batch)
        requests = list(sampler)
        assert all(0 < len(r.indices) <= batch and r.seed is None for r in requests)
        lengths.append(len(requests))
        seen += [i for r in requests for i in r.indices.tolist()]
    assert seen == list(range(n))  # in rank order they are the set
    if batch > 1:
        assert len(set(lengths)) == 1  # no process waits for another
        assert lengths[0] == len(sampler)


def test_probe_set_is_read_in_one_drawn_order(
    pretend_processes: Callable[[int, int], None],
) -> None:
    def order(seed: int, rank: int, world: int, epoch: int = 0) -> list[int]:
        pretend_processes(rank, world)
        sampler = EvalBatches(range(101), 8, seed)
        sampler.set_epoch(epoch)
        return [i for request in sampler for i in request.indices.tolist()]

    whole = order(3, 0, 1)
    assert sorted(whole) == list(range(101)) != whole
    assert order(3, 0, 2) + order(3, 1, 2) == whole == order(3, 0, 1, epoch=4)
    assert order(4, 0, 1) != whole


@pytest.mark.parametrize("count", [10, 37, 100])
def test_subset_is_stratified_and_seeded(count: int) -> None:
    labels = torch.cat([torch.full((size,), c) for c, size in enumerate((500, 300, 150, 50))])
    labels = labels[torch.randperm(1000, generator=torch.Generator().manual_seed(0))]
    chosen = draw_subset(labels, count, seed=0)
    assert len(chosen.unique()) == count
    shares = labels[chosen].bincount(minlength=4) - count * torch.tensor([0.5, 0.3, 0.15, 0.05])
    assert shares.abs().max() < 1.01
    assert torch.equal(chosen, draw_subset(labels, count, seed=0))
    assert not torch.equal(chosen, draw_subset(labels, count, seed=1))


def test_subset_without_labels_is_spread() -> None:
    chosen = draw_subset(torch.full((10_000,), -1), 0.05, seed=0)
    assert len(chosen.unique()) == 500
    assert 4500 < chosen.float().mean() < 5500


def test_derived_seeds_do_not_coincide() -> None:
    parts = list(itertools.product(range(4), range(5), range(5), range(5)))
    assert len({derive_seed(*each) for each in parts}) == len(parts)
    assert derive_seed(1, 0, 2, 3, 4) == 7390547905406435470  # and stay what they are
