"""The paper's identities, in numbers: for a paper on a duality they are the tests."""

import pytest
import torch
from helpers import references
from torch import Tensor

from duality_ssl import functional
from duality_ssl.criteria import DCL, TCR, BarlowTwins, SimCLR, VICReg, VICRegCtr

SHAPES = [
    pytest.param(2, 3, id="minimal"),
    pytest.param(12, 5, id="tall"),
    pytest.param(5, 12, id="wide"),
    pytest.param(8, 8, id="square"),
    pytest.param(9, 8, id="one more sample"),
    pytest.param(8, 9, id="one more dimension"),
]
each_shape = pytest.mark.parametrize(("n", "d"), SHAPES)


def random(n: int, d: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, dtype=torch.float64, generator=generator)


def gradient(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, inputs, retain_graph=True)


def off_diagonal(matrix: Tensor) -> Tensor:
    return matrix - matrix.diagonal().diag()


def doubly_normalized(n: int, d: int) -> Tensor:
    """Rows and columns of one norm each, from a Sinkhorn iteration on the squares."""
    z = random(n, d)
    for _ in range(2000):
        z = z / z.norm(dim=1, keepdim=True)
        z = z / z.norm(dim=0, keepdim=True) * (n / d) ** 0.5
    return z


@each_shape
def test_theorem_3_3(n: int, d: int) -> None:
    z = random(n, d).requires_grad_()
    rows, columns = functional.fourth_norms(z)
    left = functional.dimension_contrastive(z) + columns
    right = functional.sample_contrastive(z) + rows
    torch.testing.assert_close(left, right, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient(left, z), gradient(right, z))


@pytest.mark.parametrize(("n", "d"), [(12, 5), (5, 12), (8, 8)], ids=["tall", "wide", "square"])
def test_doubly_normalized_criteria_differ_by_a_constant(n: int, d: int) -> None:
    # With unit rows, columns have norm sqrt(N / D): L_nc + N^2 / D = L_c + N.
    z = doubly_normalized(n, d)
    left = functional.dimension_contrastive(z) + n**2 / d
    torch.testing.assert_close(left, functional.sample_contrastive(z) + n)
    if n == d:
        ours = functional.sample_contrastive(z) + n - d  # the paper's form: all norms are 1
        torch.testing.assert_close(functional.dimension_contrastive(z), ours)


@each_shape
@pytest.mark.parametrize("norm", [1.0, 3.0])
def test_lemma_3_4(n: int, d: int, norm: float) -> None:
    rows_of_norm = functional.normalize_rows(random(n, d), norm)
    columns_of_norm = functional.normalize_rows(random(d, n), norm).T
    constant = torch.ones(n, d, dtype=torch.float64)
    one_column, one_row = torch.zeros(n, d), torch.zeros(n, d)
    one_column[:, 0], one_row[0] = norm, norm

    lower, upper = functional.column_fourth_norm_bounds(n, d, norm)
    assert lower < functional.fourth_norms(rows_of_norm)[1] < upper
    assert functional.fourth_norms(constant * norm / d**0.5)[1].item() == pytest.approx(lower)
    assert functional.fourth_norms(one_column)[1].item() == pytest.approx(upper)

    lower, upper = functional.row_fourth_norm_bounds(n, d, norm)
    assert lower < functional.fourth_norms(columns_of_norm)[0] < upper
    assert functional.fourth_norms(constant * norm / n**0.5)[0].item() == pytest.approx(lower)
    assert functional.fourth_norms(one_row)[0].item() == pytest.approx(upper)


@each_shape
def test_corollary_3_4_1(n: int, d: int) -> None:
    unit_rows = functional.normalize_rows(random(n, d))
    dimension = functional.dimension_contrastive(unit_rows)
    lower, upper = functional.sample_contrastive_bounds(dimension, n, d)
    assert lower < functional.sample_contrastive(unit_rows) < upper
    torch.testing.assert_close((lower, upper), (dimension - n + n**2 / d, dimension - n + n**2))

    unit_columns = functional.normalize_rows(random(d, n)).T
    sample = functional.sample_contrastive(unit_columns)
    lower, upper = functional.dimension_contrastive_bounds(sample, n, d)
    assert lower < functional.dimension_contrastive(unit_columns) < upper
    torch.testing.assert_close((lower, upper), (sample - d + d**2 / n, sample - d + d**2))


@each_shape
def test_equation_10_vicreg_through_the_gram_matrix(n: int, d: int) -> None:
    """Covariance term from the N x N matrix: same loss and same gradient as from the D x D one."""
    z1, z2 = random(n, d).requires_grad_(), random(n, d, seed=1).requires_grad_()
    gram_terms = []
    for z in (z1, z2):
        c = z - z.mean(dim=0)
        sample = off_diagonal(c @ c.T).square().sum()
        regularizer = (c**2).sum(dim=1).square().sum() - (c**2).sum(dim=0).square().sum()
        torch.testing.assert_close(functional.norm_regularizer(c), regularizer)
        gram_terms.append((sample + regularizer) / ((n - 1) ** 2 * d))
    through_gram = gram_terms[0] + gram_terms[1]
    ours = VICReg()(z1, z2)["covariance"]
    covariances = [off_diagonal(torch.cov(z.T)).square().sum() / d for z in (z1, z2)]
    as_published = covariances[0] + covariances[1]
    for other in (through_gram, as_published):
        torch.testing.assert_close(ours, other)
        torch.testing.assert_close(gradient(ours, z1, z2), gradient(other, z1, z2))


@pytest.mark.parametrize("temperature", [0.1, 0.15, 0.5])
@pytest.mark.parametrize("invariance", [1.0, 25.0])
@pytest.mark.parametrize(("n", "d"), [(6, 10), (10, 6)], ids=["wide", "tall"])
def test_vicreg_ctr_is_scaled_dcl_with_negatives_within_views(
    temperature: float, invariance: float, n: int, d: int
) -> None:
    views = []
    for seed in (0, 1):
        half = random(n // 2, d, seed)
        half = half - half.mean(dim=1, keepdim=True)
        # With their negatives: rows of mean zero and of norm sqrt(D - 1), a standard deviation of 1
        # exactly, whose dimensions have mean zero too. Both views then get the same other means.
        rows = functional.normalize_rows(torch.cat([half, -half]), (d - 1) ** 0.5)
        views.append(rows + random(1, d, seed=2))
    covariance = invariance * temperature * (d - 1) / d
    terms = VICRegCtr(invariance, 25, covariance, temperature)(*views)
    assert terms["variance"] == 0
    dcl = references.pair_contrast(
        *(view.numpy() for view in views),
        temperature=temperature,
        similarity="cosine",
        normalization="centered",
        with_positive=False,
        with_across=False,
    )
    expected = 2 * covariance * dcl + 2 * invariance * (d - 1) / d
    assert terms["loss"].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("n", "d"), [(6, 10), (10, 6)], ids=["wide", "tall"])
def test_vicreg_ctr_charges_a_constant_batch_with_the_whole_hinge(n: int, d: int) -> None:
    """Centred rows would hide it: each of them varies over the dimensions as before."""
    z = random(1, d).expand(n, d)
    assert VICRegCtr()(z, z)["variance"].item() == pytest.approx(0.99, rel=1e-12)


@pytest.mark.parametrize("similarity", ["cosine", "squared", "absolute"])
@pytest.mark.parametrize("normalization", ["embeddings", "centered", "standardized"])
def test_simclr_is_dcl_plus_its_positive(similarity: str, normalization: str) -> None:
    """Sample by sample, exp(SimCLR's summand) is exp(DCL's) plus its positive, which is 1."""
    z1, z2 = random(6, 4), random(6, 4, seed=1)
    arguments = (0.3, similarity, normalization)
    positives, negatives = DCL(*arguments).logits(z1, z2)
    dcl = negatives - positives[:, None]
    simclr = torch.log1p(torch.exp(dcl))
    torch.testing.assert_close(DCL(*arguments)(z1, z2)["loss"], dcl.mean())
    torch.testing.assert_close(SimCLR(*arguments)(z1, z2)["loss"], simclr.mean())
    assert SimCLR(*arguments)(z1, z2)["loss"] > DCL(*arguments)(z1, z2)["loss"]


@each_shape
def test_barlow_twins_on_both_sides(n: int, d: int) -> None:
    z1, z2 = random(n, d).requires_grad_(), random(n, d, seed=1).requires_grad_()
    h1, h2 = ((z - z.mean(dim=0)) / z.std(dim=0, correction=0) for z in (z1, z2))
    correlation = h1.T @ h2 / n
    diagonal = (h1 * h2).sum(dim=0) / n
    squares = ((h1 @ h1.T) * (h2 @ h2.T)).sum() / n**2
    invariance = (1 - diagonal).square().sum()
    columns = invariance + 0.3 * off_diagonal(correlation).square().sum()
    rows = invariance + 0.3 * (squares - diagonal.square().sum())
    ours = BarlowTwins(redundancy=0.3)(z1, z2)["loss"]
    for side in (columns, rows):
        torch.testing.assert_close(ours, side)
        torch.testing.assert_close(gradient(ours, z1, z2), gradient(side, z1, z2))


@each_shape
def test_tcr_on_both_sides(n: int, d: int) -> None:
    z1, z2 = random(n, d).requires_grad_(), random(n, d, seed=1).requires_grad_()
    h1, h2 = (z / z.norm(dim=1, keepdim=True) for z in (z1, z2))
    scale = d / (n * 0.2)
    ours = TCR()(z1, z2)["coding_rate"]
    for size, products in ((d, [h.T @ h for h in (h1, h2)]), (n, [h @ h.T for h in (h1, h2)])):
        identity = torch.eye(size, dtype=torch.float64)
        side = sum(torch.logdet(identity + scale * product) for product in products) / 4
        torch.testing.assert_close(ours, side)
        torch.testing.assert_close(gradient(ours, z1, z2), gradient(side, z1, z2))


@each_shape
def test_spectral_contrastive_on_both_sides(n: int, d: int) -> None:
    a = functional.project_to_ball(random(n, d), 1.0).requires_grad_()
    b = functional.project_to_ball(random(n, d, seed=1), 1.0).requires_grad_()
    products, ours = functional.cross_gram(a, b)
    near = off_diagonal(a @ b.T).square().sum()
    far = ((a.T @ a) * (b.T @ b)).sum() - (a * b).sum(dim=1).square().sum()
    torch.testing.assert_close(products, (a * b).sum(dim=1))
    for side in (near, far):
        torch.testing.assert_close(ours, side)
        torch.testing.assert_close(gradient(ours, a, b), gradient(side, a, b))
