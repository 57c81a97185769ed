"""What the criteria hold beside their inputs, by the allocator's own account."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.criteria_cases import make_inputs
from torch import Tensor

from duality_ssl import criteria

FLOAT, MIB = 4, 2**20


@pytest.fixture
def peak_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], int]:
    """The measure of the benchmarks."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    from measure import peak_memory

    return peak_memory


def step(criterion: criteria.Criterion, n: int, d: int) -> Callable[[], object]:
    """Forward and backward, with the gradients of the embeddings held at the end."""
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(n, d, generator=generator).requires_grad_() for _ in range(2)]
    inputs = make_inputs(criterion, views[0])

    def run() -> tuple[Tensor, ...]:
        return torch.autograd.grad(criterion(*views, **inputs)["loss"], views)

    run()  # what is allocated once is not the criterion's
    return run


@pytest.mark.parametrize(
    "name", ["VICReg", "BarlowTwins", "TCR", "SpectralContrastive"], ids=lambda name: name
)
@pytest.mark.parametrize(("n", "d"), [(64, 8192), (2048, 128)], ids=["wide", "tall"])
def test_extra_memory_is_a_few_inputs_and_the_smaller_side(
    name: str, n: int, d: int, peak_memory: Callable[[Callable[[], object]], int]
) -> None:
    extra = peak_memory(step(getattr(criteria, name)(), n, d))
    assert 2 * n * d * FLOAT <= extra  # the gradients at least, or nothing was measured
    assert extra <= (4 * 2 * n * d + min(n, d) ** 2) * FLOAT


@pytest.mark.parametrize("name", ["VIbCReg", "FroSSL", "MMCR"])
@pytest.mark.parametrize(("n", "d"), [(64, 8192), (2048, 128)], ids=["wide", "tall"])
def test_the_larger_side_is_never_held(
    name: str, n: int, d: int, peak_memory: Callable[[Callable[[], object]], int]
) -> None:
    extra = peak_memory(step(getattr(criteria, name)(), n, d))
    assert extra < (7 * 2 * n * d + 8 * min(n, d) ** 2) * FLOAT < max(n, d) ** 2 * FLOAT


@pytest.mark.parametrize("similarity", ["cosine", "squared", "absolute"])
@pytest.mark.parametrize("criterion", [criteria.SimCLR, criteria.DCL])
def test_contrast_never_holds_the_matrix_of_similarities(
    criterion: type[criteria.SimCLR | criteria.DCL],
    similarity: str,
    peak_memory: Callable[[Callable[[], object]], int],
) -> None:
    n, d = 4096, 8
    extra = peak_memory(step(criterion(similarity=similarity), n, d))  # type: ignore[arg-type]
    assert extra < 12 * MIB < n * n * FLOAT / 5


@pytest.mark.parametrize("name", ["NSCL", "SupCon", "MoCoV3"])
def test_contrast_with_labels_or_targets_never_holds_the_matrix(
    name: str, peak_memory: Callable[[Callable[[], object]], int]
) -> None:
    n, d = 8192, 4
    assert peak_memory(step(getattr(criteria, name)(), n, d)) < 16 * MIB < n * n * FLOAT / 5


@pytest.mark.parametrize(
    ("criterion", "n", "d"),
    [(criteria.VICRegExp, 8, 6144), (criteria.VICRegCtr, 6144, 8)],
    ids=["VICReg-exp", "VICReg-ctr"],
)
def test_a_logsumexp_never_holds_its_matrix(
    criterion: type[criteria.Criterion],
    n: int,
    d: int,
    peak_memory: Callable[[Callable[[], object]], int],
) -> None:
    assert peak_memory(step(criterion(), n, d)) < 12 * MIB < max(n, d) ** 2 * FLOAT / 5


@pytest.mark.parametrize(
    ("criterion", "n", "d"),
    [
        pytest.param(criteria.CPLearn(256, num_codes=2048), 64, 256, id="CPLearn"),
        pytest.param(criteria.CPLearn(32, num_codes=2048), 256, 32, id="CPLearn-batch"),
        pytest.param(criteria.SwAV(64, frozen_steps=0), 128, 64, id="SwAV"),
        pytest.param(criteria.DINO(4096), 64, 4096, id="DINO"),
    ],
)
def test_memory_of_codes_and_prototypes_is_estimated(
    criterion: criteria.Criterion,
    n: int,
    d: int,
    peak_memory: Callable[[Callable[[], object]], int],
) -> None:
    assert 0.7 < peak_memory(step(criterion, n, d)) / (FLOAT * criterion.memory(n, d)) < 1.4
