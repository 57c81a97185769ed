"""Alignment and uniformity, against loops over pairs of rows."""

import pytest
import torch
from helpers import references
from torch import Tensor

from duality_ssl.functional import alignment, uniformity


def random(n: int, d: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize(("n", "d"), [(2, 3), (9, 4), (4, 9)], ids=["pair", "tall", "wide"])
@pytest.mark.parametrize("name", ["alignment", "uniformity"])
def test_value_and_gradient_are_those_of_the_loops(name: str, n: int, d: int) -> None:
    z = random(n, d).requires_grad_()
    others = (z + random(n, d, 1),) if name == "alignment" else ()
    value = {"alignment": alignment, "uniformity": uniformity}[name](z, *others)
    expected = getattr(references, name)(z, *others)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    (gradient,) = torch.autograd.grad(value, z)
    (theirs,) = torch.autograd.grad(expected, z)
    torch.testing.assert_close(gradient, theirs, rtol=1e-10, atol=1e-10)


def test_uniformity_of_another_sharpness() -> None:
    z = random(6, 3)
    assert uniformity(z, t=0.5).item() == pytest.approx(
        references.uniformity(z, 0.5).item(), rel=1e-12
    )


def test_ends_of_the_scale() -> None:
    one, opposite = torch.ones(5, 3), torch.tensor([[2.0, 0.0], [-1.0, 0.0]])
    assert (alignment(one, 3 * one), uniformity(one)) == (0, pytest.approx(0, abs=1e-6))
    assert (alignment(one, -one), uniformity(opposite)) == (pytest.approx(4), pytest.approx(-8))
