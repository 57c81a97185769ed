"""LiDAR, alpha-ReQ and the singular values, against loops over samples and views."""

import math

import pytest
import torch
from helpers import references
from torch import Tensor

from duality_ssl.functional import alpha_req, lidar, rankme, singular_values, spectrum


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize(("n", "d"), [(11, 4), (4, 11), (6, 6)], ids=["tall", "wide", "square"])
def test_singular_values(n: int, d: int) -> None:
    z = random(n, d)
    expected = torch.linalg.svdvals(z)
    torch.testing.assert_close(singular_values(z), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("n", "q", "d"), [(12, 3, 5), (4, 2, 9), (2, 5, 3)], ids=["tall", "wide", "two images"]
)
@pytest.mark.parametrize("piece", [2**24, 40], ids=["at once", "in pieces"])
def test_lidar(n: int, q: int, d: int, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectrum, "_PIECE", piece)
    views = 3 + random(n, 1, d) + 0.1 * random(n, q, d, seed=1)
    # noise of 1e-16 of an eigenvalue that is zero counts for eps, not for a share
    assert lidar(views).item() == pytest.approx(references.lidar(views.numpy()), rel=1e-12)


def test_lidar_does_not_count_what_only_augmentation_moves() -> None:
    """Four directions tell images apart, four others views: RankMe counts all eight."""
    n = 400
    views = torch.cat([random(n, 1, 4).expand(n, 10, 4), 3 * random(n, 10, 4, seed=1)], dim=2)
    assert lidar(views).item() == pytest.approx(4, abs=0.1)
    assert rankme(views.flatten(0, 1)).item() > 6


def test_delta_is_absolute() -> None:
    """At a scale where the scatter of the views is nothing beside it, delta decides."""
    views = random(50, 1, 4) + 0.1 * random(50, 3, 4, seed=1)
    views *= torch.tensor([10.0, 10, 1, 1])
    small = 1e-6 * views
    between = small.mean(dim=1)
    expected = references.entropy_rank(
        singular_values(between - between.mean(dim=0)).square().tolist()
    )
    assert lidar(small).item() == pytest.approx(expected, rel=1e-6)
    assert lidar(views).item() > expected + 1


def test_lidar_of_what_cannot_be_factored_is_nan() -> None:
    assert lidar(torch.full((4, 2, 3), math.nan)).isnan()
    assert lidar(torch.ones(4, 2, 3)).item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("shape", [(6, 3), (6, 1, 3), (1, 6, 3)], ids=["rows", "view", "image"])
def test_lidar_needs_views_of_images(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(n, q, D\), q >= 2 views of n >= 2 images, but got"):
        lidar(torch.ones(shape))


@pytest.mark.parametrize(
    ("n", "d"),
    [(30, 7), (12, 30), (150, 120), (105, 300), (130, 99)],
    ids=["few", "few samples", "11 to 100", "11 to 100, wide", "tenth of 99"],
)
def test_alpha_req(n: int, d: int) -> None:
    z = 2 + random(n, d) * torch.arange(1, d + 1) ** -0.5
    assert alpha_req(z).item() == pytest.approx(references.alpha_req(z.numpy()), rel=1e-9)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_alpha_req_of_a_power_law_is_its_exponent(alpha: float) -> None:
    ranks = torch.arange(1, 151, dtype=torch.float64)
    directions = random(400, 150)
    basis = torch.linalg.qr(directions - directions.mean(dim=0))[0]
    z = basis * ranks ** (-alpha / 2)
    assert alpha_req(7 * z).item() == pytest.approx(alpha, rel=1e-9)


def test_alpha_req_fits_no_noise() -> None:
    """Ten directions of a power law in twenty dimensions: the others are zero but for rounding."""
    directions = random(100, 10)
    basis = torch.linalg.qr(directions - directions.mean(dim=0))[0]
    z = basis / torch.arange(1, 11) @ torch.linalg.qr(random(20, 10))[0].T
    assert alpha_req(z).item() == pytest.approx(2, rel=1e-6)
    assert alpha_req(torch.ones(9, 4)).isnan()
    assert alpha_req(torch.full((9, 4), math.nan)).isnan()
