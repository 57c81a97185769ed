"""Correlations, spreads, histograms and scales against references."""

import math
import random

import numpy as np
import pytest
from scipy import stats

from duality_ssl.reports.correlation import pearson, spearman
from duality_ssl.reports.curves import resample
from duality_ssl.reports.names import (
    axis_title,
    compact,
    heading,
    listed,
    mean_and_std,
    significant,
)
from duality_ssl.reports.rows import spread
from duality_ssl.reports.scales import Scale, category_scale, linear_scale, log_scale
from duality_ssl.reports.tables import near_best


def _pairs(n: int) -> tuple[list[float], list[float]]:
    rng = random.Random(n)
    x = [rng.gauss(0, 1) for _ in range(n)]
    return x, [round(a + rng.gauss(0, 1), 1) for a in x]  # rounded, so that some are equal


@pytest.mark.parametrize("n", [4, 30])
def test_pearson_matches_scipy(n: int) -> None:
    x, y = _pairs(n)
    expected = stats.pearsonr(x, y)
    low, high = expected.confidence_interval(0.95)
    assert pearson(x, y) == pytest.approx((expected.statistic, low, high, n), rel=1e-12)


def test_spearman_matches_scipy() -> None:
    x, y = _pairs(30)
    found = spearman(x, y)
    assert found.r == pytest.approx(stats.spearmanr(x, y).statistic, rel=1e-12)
    half = stats.norm.ppf(0.975) * math.sqrt(1.06 / 27)
    ends = [math.tanh(math.atanh(found.r) + side * half) for side in (-1, 1)]
    assert [found.low, found.high] == pytest.approx(ends, rel=1e-12)


@pytest.mark.parametrize(
    ("x", "y", "text"),
    [
        pytest.param([1, 2, 3], [2, 4, 6.5], "1.00, n = 3", id="three points have no interval"),
        pytest.param([1, 1, 1, 1], [1, 2, 3, 4], "undefined, n = 4", id="constant"),
        pytest.param([1, 2, 3, 4], [2, 4, 6, 8], "1.00 [1.00, 1.00], n = 4", id="exact"),
        pytest.param([1, 2, 3, 4], [8, 6, 4, 2], "−1.00 [−1.00, −1.00], n = 4", id="opposite"),
        pytest.param([1, 2], [1, 2], "undefined, n = 2", id="two points"),
    ],
)
def test_a_correlation_says_what_is_undefined(x: list[float], y: list[float], text: str) -> None:
    assert str(pearson(x, y)) == text


def test_spread_is_that_of_a_sample() -> None:
    numbers = [0.91, 0.93, 0.98]
    expected = (np.mean(numbers), np.std(numbers, ddof=1), 3)
    assert spread(numbers) == pytest.approx(expected, rel=1e-12)
    assert spread([0.5]) == (0.5, 0.0, 1)


def test_near_best_takes_the_deviation_of_the_best() -> None:
    spreads = [spread([90, 92]), spread([89.0, 90.0]), None, spread([88, 89])]
    assert near_best(spreads) == [True, False, False, False]  # 91 - 1.41 = 89.59
    assert near_best([spread([90, 92]), spread([89.2, 90.0])]) == [True, True]


def test_a_resampled_histogram_holds_the_same_mass() -> None:
    rng = np.random.default_rng(0)
    density, edges = np.histogram(rng.normal(size=1000), bins=20, density=True)
    grid = np.linspace(-5, 5, 34)
    found = resample(edges.tolist(), density.tolist(), grid.tolist())
    masses = np.concatenate([[0], np.cumsum(density * np.diff(edges))])
    expected = np.diff(np.interp(grid, edges, masses)) / np.diff(grid)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert resample(edges.tolist(), density.tolist(), edges.tolist()) == pytest.approx(density)


@pytest.mark.parametrize(
    ("scale", "labels"),
    [
        pytest.param(
            linear_scale([88.2, 96.9]),
            ["88", "90", "92", "94", "96"],
            id="accuracies",
        ),
        pytest.param(linear_scale([97, 99.9], 100), ["97", "98", "99", "100"], id="limited"),
        pytest.param(linear_scale([0, 0.013]), ["0.000", "0.005", "0.010"], id="small"),
        pytest.param(
            linear_scale([-1, 1]),
            ["−1.0", "−0.5", "0.0", "0.5", "1.0"],
            id="signs",
        ),
        pytest.param(log_scale([16, 512], [16, 32, 512]), ["16", "32", "512"], id="given"),
        pytest.param(log_scale([3, 200]), ["5", "10", "20", "50", "100", "200"], id="two decades"),
        pytest.param(
            log_scale([2e-6, 1]),
            ["10⁻⁵", "10⁻⁴", "10⁻³", "0.01", "0.1", "1"],
            id="six decades",
        ),
        pytest.param(
            log_scale([30000, 4e6]),
            ["50k", "100k", "200k", "500k", "1M", "2M"],
            id="sizes",
        ),
        pytest.param(log_scale([31, 33]), ["31", "31.5", "32", "32.5", "33"], id="narrow"),
        pytest.param(category_scale(["first", "last"]), ["first", "last"], id="labels"),
    ],
)
def test_ticks_are_round(scale: Scale, labels: list[str]) -> None:
    assert [label for _, label in scale.ticks] == labels
    assert all(0 <= scale.fraction(tick) <= 1 for tick, _ in scale.ticks)


def test_a_margin_passes_neither_zero_nor_the_most() -> None:
    assert linear_scale([97, 99.9], 100).high == 100
    assert linear_scale([97, 99.9]).high > 100
    assert linear_scale([0.1, 5]).low == 0
    assert linear_scale([-0.1, 5]).low < -0.1
    assert [tick for tick, _ in linear_scale([0, 2], least_step=1).ticks] == [0, 1, 2]


@pytest.mark.parametrize("value", [5.0, 0.0])
def test_one_value_lies_inside_its_scale(value: float) -> None:
    assert 0 <= linear_scale([value]).fraction(value) < 1
    assert 0 < log_scale([value + 1]).fraction(value + 1) < 1


def test_a_scale_puts_what_is_outside_at_its_end() -> None:
    scale = log_scale([1, 100], [1, 10, 100])
    assert scale.fraction(0) == 0
    assert scale.fraction(10) == pytest.approx(0.5)
    assert scale.fraction(1e9) == 1


@pytest.mark.parametrize(
    ("name", "short", "long"),
    [
        ("linear_top1", "linear", "Linear accuracy (%)"),
        ("few_label_top1", "5 labels a class", "Accuracy with 5 labels a class (%)"),
        ("labels1_top1", "1 label a class", "Accuracy with 1 label a class (%)"),
        ("percent10_top1", "10 % of labels", "Accuracy with 10 % of labels (%)"),
        ("knn20_top1", "20-NN", "20-NN accuracy (%)"),
        ("val/probe_top1", "online probe", "Online probe accuracy (%)"),
        ("rankme_features", "RankMe of features", "RankMe of features"),
        ("alpha_req", "α-ReQ", "α-ReQ"),
        ("data.batch_size", "batch size", "Batch size"),
        ("k-NN", "k-NN", "k-NN"),
    ],
)
def test_names_of_scores(name: str, short: str, long: str) -> None:
    assert (heading(name), axis_title(name)) == (short, long)


@pytest.mark.parametrize("words", [[], ["a"], ["a", "b"], ["a", "b", "c"]], ids=len)
def test_words_of_a_sentence(words: list[str]) -> None:
    assert listed(words) == ["", "a", "a and b", "a, b and c"][len(words)]


def test_form_of_values() -> None:
    assert mean_and_std("linear_top1", 98.349, 0.251, 3) == "98.3 ± 0.3"
    assert mean_and_std("linear_top1", 98.349, 0.0, 1) == "98.3"
    assert mean_and_std("rankme", 1234.5, 1.6, 3) == "1,234 ± 2"
    assert mean_and_std("lidar", 0.5, 0.0123, 3) == "0.500 ± 0.012"
    assert mean_and_std("uniformity", -3e-7, 2e-8, 2) == "−3.00·10⁻⁷ ± 2.00·10⁻⁸"
    assert [significant(value) for value in (0, -0.5, 2.5e-7, math.nan)] == [
        *("0", "−0.500", "2.50·10⁻⁷", "–")
    ]
    assert [compact(value) for value in (0.02, 2e-5, 1024, 5000, 25_000, 3e6)] == [
        *("0.02", "2·10⁻⁵", "1,024", "5k", "25k", "3M")
    ]
