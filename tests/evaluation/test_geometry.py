"""Both sides of the duality measured on a set of embeddings."""

import numpy as np
import pytest
import torch
from helpers import references
from torch import Tensor

from duality_ssl.evaluation.geometry import measure_geometry
from duality_ssl.functional import normalize_rows


def random(n: int, d: int) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("n", "d"), [(9, 4), (4, 9), (6, 6)], ids=["tall", "wide", "square"])
def test_scores_match_their_definition(n: int, d: int) -> None:
    z = 0.5 + random(n, d)
    measured, expected = measure_geometry(z), references.geometry(z.numpy())
    assert {name: measured[name].item() for name in expected} == pytest.approx(expected, rel=1e-12)


def test_histograms_are_densities_of_what_is_off_the_diagonal() -> None:
    z = 0.3 + random(40, 7)
    measured = measure_geometry(z)
    for name, matrix in (
        ("gram_histogram", references.unit_rows(z.numpy()) @ references.unit_rows(z.numpy()).T),
        ("covariance_histogram", np.corrcoef(z.numpy(), rowvar=False)),
    ):
        entries = matrix[~np.eye(len(matrix), dtype=bool)]
        expected, _ = np.histogram(entries, 64, (-1, 1), density=True)
        assert measured[name].tolist() == pytest.approx(expected.tolist(), abs=1e-12), name


def test_uniform_rows_have_the_cosines_of_proposition_3_1() -> None:
    measured = measure_geometry(random(2000, 64))
    assert measured["cosine_mean"].item() == pytest.approx(0, abs=1e-3)
    assert measured["cosine_variance"].item() == pytest.approx(1, rel=0.02)


def test_fourth_norms_reach_the_bounds_of_lemma_3_4() -> None:
    """Lower: a constant matrix. Upper: one column, or one row, that is not zero."""
    constant, column = measure_geometry(torch.ones(6, 4)), torch.zeros(6, 4)
    assert constant["row_fourth_ratio"].item() == pytest.approx(1)
    assert constant["column_fourth_ratio"].item() == pytest.approx(1)
    column[:, 0] = 1
    assert measure_geometry(column)["column_fourth_ratio"].item() == pytest.approx(4)
    assert measure_geometry(column.T)["row_fourth_ratio"].item() == pytest.approx(4)


def test_dominance_is_one_of_a_diagonal_matrix_and_the_least_of_a_constant_one() -> None:
    assert measure_geometry(torch.eye(4))["gram_dominance"] == 1
    assert measure_geometry(torch.ones(5, 3))["gram_dominance"].item() == pytest.approx(1 / 5)
    hadamard = torch.tensor([[1.0, 1, 1, -1, -1, -1], [1, -1, 0, 1, -1, 0]]).T
    assert measure_geometry(hadamard)["covariance_dominance"].item() == pytest.approx(1)


def test_a_constant_dimension_has_no_correlations() -> None:
    z = torch.cat([random(8, 3), torch.full((8, 1), 7.0)], dim=1)
    dominance = measure_geometry(z)["covariance_dominance"]
    assert dominance == pytest.approx(measure_geometry(z[:, :3])["covariance_dominance"].item())


def test_one_dimension_has_an_empty_histogram() -> None:
    assert measure_geometry(random(5, 1))["covariance_histogram"].sum() == 0


def test_neither_scale_nor_length_of_rows_changes_the_cosines() -> None:
    z = random(12, 5)
    lengths = torch.linspace(0.1, 10, 12).unsqueeze(1)
    names = ("cosine_mean", "cosine_variance", "column_fourth_ratio", "gram_dominance")
    expected, got = measure_geometry(normalize_rows(z)), measure_geometry(lengths * z)
    assert [got[n].item() for n in names] == pytest.approx([expected[n].item() for n in names])
