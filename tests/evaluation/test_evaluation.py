import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.callback_stubs import StubData, StubModule, trainer
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from duality_ssl.callbacks import FeatureWriter, OfflineEvaluation
from duality_ssl.evaluation import (
    Settings,
    effective_rank,
    evaluate,
    few_label_top1,
    knn_top1,
    knn_votes,
    linear_top1,
)
from duality_ssl.evaluation.logistic import LogisticRegression, fit
from duality_ssl.functional import rankme

Sets = tuple[Tensor, Tensor, Tensor, Tensor]
FEW = Settings(protocols=("linear", "ranks"))


@pytest.fixture(scope="module")
def digits() -> Sets:
    """Raw pixels, 1,437 to train on and 360 to validate."""
    x, y = load_digits(return_X_y=True)
    train, val, y_train, y_val = train_test_split(x, y, test_size=360, random_state=0, stratify=y)
    return (
        torch.tensor(train, dtype=torch.float32),
        torch.tensor(y_train),
        torch.tensor(val, dtype=torch.float32),
        torch.tensor(y_val),
    )


def reference_votes(
    bank: np.ndarray, labels: np.ndarray, queries: np.ndarray, classes: int, k: int, t: float
) -> np.ndarray:
    """Wu et al., section 3.4, one query and one neighbour at a time."""
    votes = np.zeros((len(queries), classes))
    for q, query in enumerate(queries):
        cosines = [
            bank_row @ query / np.linalg.norm(bank_row) / np.linalg.norm(query) for bank_row in bank
        ]
        for i in np.argsort(cosines)[::-1][:k]:
            votes[q, labels[i]] += np.exp(cosines[i] / t)
    return votes


@pytest.mark.parametrize("k", [1, 4, 500], ids=["nearest", "few", "more_than_the_bank"])
@pytest.mark.parametrize("temperature", [0.07, 1.0], ids=["sharp", "flat"])
@pytest.mark.parametrize("rows", [100, 17, 3], ids=["whole_bank", "pieces", "less_than_k"])
def test_knn_votes_match_reference(
    small: Sets, k: int, temperature: float, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank, labels, queries, _ = small
    monkeypatch.setattr("duality_ssl.evaluation.knn._ROWS", rows)
    monkeypatch.setattr("duality_ssl.evaluation.knn._BLOCK", 7 * min(rows, len(bank)))  # 7 queries
    votes = knn_votes(bank, labels, queries, 4, k=k, temperature=temperature)
    expected = reference_votes(
        bank.double().numpy(), labels.numpy(), queries.double().numpy(), 4, k, temperature
    )
    assert votes.shape == (30, 4)
    torch.testing.assert_close(
        (votes / votes.sum(1, keepdim=True)).double().numpy(),
        expected / expected.sum(1, keepdims=True),
        rtol=1e-4,
        atol=1e-6,
    )


def test_knn_votes_stay_finite_at_a_tiny_temperature(small: Sets) -> None:
    bank, labels, queries, _ = small
    votes = knn_votes(bank, labels, queries, 3, k=20, temperature=1e-4)
    assert votes.isfinite().all()
    assert votes.sum(1).min() >= 1
    one = knn_votes(bank, labels, queries, 3, k=1, temperature=0.07)
    assert torch.equal(votes.argmax(1), one.argmax(1))


@pytest.mark.parametrize("arguments", [{"k": 0}, {"temperature": 0.0}], ids=["k", "temperature"])
def test_knn_votes_refuse(small: Sets, arguments: dict) -> None:
    bank, labels, queries, _ = small
    with pytest.raises(ValueError, match="Expected"):
        knn_votes(bank, labels, queries, 3, **{"k": 5, "temperature": 1} | arguments)


def test_raw_digits_are_where_they_are_known_to_be(digits: Sets) -> None:
    results = evaluate(*digits)
    assert 0.955 < results["linear_top1"] < 0.98
    assert 0.975 < results["knn_top1"] < 0.995
    assert 0.75 < results["few_label_top1"] < 0.9
    assert 0.005 < results["few_label_std"] < 0.05
    assert 1 < results["rankme"] < 64
    assert results["rankme"] == results["rankme_features"] == rankme(digits[2]).item()


def test_linear_does_not_depend_on_the_scale_and_shift_of_a_feature(small: Sets) -> None:
    train, y, val, y_val = small
    scale, shift = torch.tensor([1e-3, 1.0, 1e3, -10.0, 0.1]), torch.tensor([0.0, 5.0, 1e3, 0.0, 1])
    moved = linear_top1(train * scale + shift, y, val * scale + shift, y_val)
    assert moved == linear_top1(*small)


def test_linear_ignores_a_constant_feature(small: Sets) -> None:
    train, y, val, y_val = small
    # constant in training; standardised by rounding noise, the validation's value would decide
    train = torch.cat([train, torch.full((60, 1), 0.1)], dim=1)
    val = torch.cat([val, torch.full((30, 1), 5.0)], dim=1)
    assert linear_top1(train, y, val, y_val) == linear_top1(*small)


def test_linear_learns_from_at_most_the_cap_and_says_so(small: Sets) -> None:
    with pytest.warns(UserWarning, match="20 of 60 training samples"):
        capped = linear_top1(*small, max_samples=20)
    assert capped > 0.5


def test_few_labels_are_seeded_draws_of_so_many_a_class(
    small: Sets, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def spy(features: Tensor, labels: Tensor) -> LogisticRegression:
        seen.append((features, labels))
        return fit(features, labels)

    monkeypatch.setattr("duality_ssl.evaluation.few_label.fit", spy)
    few_label_top1(*small, per_class=4, draws=3)
    assert all(labels.bincount().tolist() == [4, 4, 4] for _, labels in seen)
    assert not torch.equal(seen[0][0], seen[1][0])
    few_label_top1(*small, per_class=4, draws=3)
    assert torch.equal(seen[0][0], seen[3][0])


def test_few_labels_are_the_mean_and_sample_deviation_of_their_draws(small: Sets) -> None:
    scores = [few_label_top1(*small, draws=1, seed=seed)[0] for seed in range(4)]
    expected = float(np.mean(scores)), float(np.std(scores, ddof=1))
    assert few_label_top1(*small, draws=4) == pytest.approx(expected, rel=1e-12)


def test_few_labels_of_many_classes_take_fewer_draws_and_say_so(
    small: Sets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("duality_ssl.evaluation.few_label._MOST_CLASSES", 7)  # 2 draws of 3
    with pytest.warns(UserWarning, match="takes 2 of 5 draws, since each has 3 classes"):
        capped = few_label_top1(*small, draws=5)
    assert capped == few_label_top1(*small, draws=2)


def test_large_sets_are_taken_in_pieces(small: Sets, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate(*small)
    monkeypatch.setattr("duality_ssl.evaluation.sets.ROWS", 7)
    monkeypatch.setattr("duality_ssl.evaluation.linear.ROWS", 7)
    assert evaluate(*small) == whole


def test_defaults_stand_in_one_place(small: Sets) -> None:
    """Settings, protocol by protocol, and the callback's flags."""
    defaults, results = Settings(), evaluate(*small)
    assert OfflineEvaluation().settings == defaults
    assert results == evaluate(*small, settings=defaults)
    assert results["linear_top1"] == linear_top1(*small)
    assert results["knn_top1"] == knn_top1(*small)
    assert (results["few_label_top1"], results["few_label_std"]) == few_label_top1(*small)


def test_a_bank_may_be_on_another_device_than_the_queries(small: Sets) -> None:
    """The meta device holds no numbers, and a GPU is not at hand: what counts is where it goes."""
    bank, labels, queries, _ = small
    votes = knn_votes(bank, labels, queries.to("meta"), 3, k=5, temperature=1)
    assert (votes.device.type, votes.shape) == ("meta", (30, 3))


def test_knn_of_evaluate_votes_on_the_device_named(
    small: Sets, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def spy(bank: Tensor, labels: Tensor, queries: Tensor, *, k: int) -> tuple[Tensor, Tensor]:
        seen.append((bank.device.type, queries.device.type))
        return torch.zeros(30, k), torch.zeros(30, k, dtype=torch.long)

    monkeypatch.setattr("duality_ssl.evaluation.knn.nearest_neighbors", spy)
    evaluate(*small, settings=Settings(protocols=("knn",)), device="meta")
    assert seen == [("cpu", "meta")]  # a large bank stays where it is, and comes in pieces


def test_few_labels_take_all_of_a_small_class(small: Sets) -> None:
    train, y, val, y_val = small
    keep = torch.cat([torch.where(y == 0)[0][:2], torch.where(y > 0)[0]])
    mean, spread = few_label_top1(train[keep], y[keep], val, y_val, per_class=5, draws=1)
    assert mean > 0.3
    assert spread == 0


@pytest.mark.parametrize("protocol", [linear_top1, knn_top1, few_label_top1])
def test_unlabelled_samples_do_not_count(small: Sets, protocol) -> None:  # noqa: ANN001
    train, y, val, y_val = small
    junk, none = torch.full((5, 5), 100.0), torch.full((5,), -1)
    with_junk = (
        torch.cat([train, junk]), torch.cat([y, none]), torch.cat([val, junk]),
        torch.cat([y_val, none]),
    )  # fmt: skip
    assert protocol(*with_junk) == protocol(*small)


@pytest.mark.parametrize("which", [1, 3], ids=["train", "val"])
def test_without_labels_only_the_ranks_are_there(small: Sets, which: int) -> None:
    sets = list(small)
    sets[which] = torch.full_like(sets[which], -1)
    with pytest.warns(
        UserWarning, match=r"no labels: only label-free measures .*--data.probe_source"
    ):
        results = evaluate(*sets, val_embeddings=small[2][:, :2], settings=FEW)
    assert set(results) == {"rankme", "rankme_features"}
    assert results["rankme"] == rankme(small[2][:, :2]).item()
    assert results["rankme_features"] == rankme(small[2]).item()


@pytest.mark.parametrize("unlabelled", [False, True], ids=["one", "one_left"])
def test_with_one_class_only_the_ranks_are_there(small: Sets, unlabelled: bool) -> None:
    train, y, val, y_val = small
    y = torch.where(y == 2, 2, -1) if unlabelled else torch.full_like(y, 2)
    with pytest.warns(
        UserWarning, match=r"are of one class, 2: only label-free .*--data.probe_"
    ) as said:
        results = evaluate(train, y, val, y_val, settings=FEW)
    assert len(said) == 1
    assert results == {"rankme": rankme(val).item(), "rankme_features": rankme(val).item()}


def test_one_class_in_validation_is_enough(small: Sets) -> None:
    train, y, val, y_val = small
    chosen = y_val == 1
    assert evaluate(train, y, val[chosen], y_val[chosen])["linear_top1"] > 0.5


def test_one_class_leaves_the_ranks_in_the_file(tmp_path: Path) -> None:
    run, data = trainer(tmp_path, OfflineEvaluation()), StubData()
    data.train.tensors[1].fill_(0)
    with pytest.warns(UserWarning, match="only label-free measures"):
        run.test(StubModule(), data, verbose=False)
    record = json.loads((tmp_path / "evaluation.json").read_text())
    assert record["num_train"] == 128
    assert "linear_top1" not in record
    assert record["rankme"] == pytest.approx(run.callback_metrics["test/rankme"].item())


class NoProjector(StubModule):
    def _represent(self, batch: Any) -> dict[str, Tensor]:
        outputs = super()._represent(batch)
        return {"features": (outputs["features"],), "labels": outputs["labels"]}


def test_a_module_without_embeddings_is_evaluated_and_written(tmp_path: Path) -> None:
    run = trainer(tmp_path, OfflineEvaluation(few_label_draws=1), FeatureWriter())
    run.test(NoProjector(), StubData(), verbose=False)
    metrics = run.callback_metrics
    assert metrics["test/rankme"] == metrics["test/rankme_features"]
    run.predict(NoProjector(), StubData())
    with np.load(tmp_path / "features.npz") as file:
        assert {*file} == {"features", "labels"}


def test_effective_rank_takes_rows_from_the_whole_set() -> None:
    rows = torch.cat([torch.ones(50, 4), torch.eye(4).repeat(25, 1)])
    assert effective_rank(rows[:50]) == pytest.approx(1, abs=1e-3)
    assert effective_rank(rows, max_samples=20) > 2


@pytest.mark.parametrize("protocol", [evaluate, linear_top1, knn_top1, few_label_top1])
@pytest.mark.parametrize("problem", ["nan", "shape", "length"])
def test_bad_features_are_refused(small: Sets, protocol, problem: str) -> None:  # noqa: ANN001
    train, *rest = small
    bad = {
        "nan": train.clone().index_fill_(0, torch.tensor([3]), torch.nan),
        "shape": train.view(60, 5, 1),
        "length": train[:-1],
    }[problem]
    with pytest.raises(ValueError, match=r"Expected (finite )?`train_features`"):
        protocol(bad, *rest)


def test_one_class_is_refused(small: Sets) -> None:
    train, y, val, y_val = small
    with pytest.raises(ValueError, match="at least 2 classes"):
        linear_top1(train, torch.zeros_like(y), val, y_val)


@pytest.mark.parametrize("arguments", [{"per_class": 0}, {"draws": 0}], ids=["per_class", "draws"])
def test_few_labels_refuse(small: Sets, arguments: dict) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        few_label_top1(*small, **arguments)
