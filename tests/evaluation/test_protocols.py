"""What each protocol reports, and how those that the settings name are called."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import Tensor

from duality_ssl.evaluation import Settings, evaluate, few_label_top1, knn_top1, protocols
from duality_ssl.evaluation.few_label import LOW_SHOT
from duality_ssl.evaluation.knn import nearest_neighbors
from duality_ssl.evaluation.linear import confusion_matrix

Sets = tuple[Tensor, Tensor, Tensor, Tensor]


def only(*names: str, **options: Any) -> Settings:
    return Settings(protocols=names, **options)


def test_linear_shows_where_it_is_wrong(small: Sets) -> None:
    train, y, val, y_val = small
    y, y_val = y + 1, y_val + 1  # no sample of class 0
    y_val[:2] = torch.tensor([2, 3])
    results = evaluate(
        train, y, val, y_val, settings=only("linear"), class_names=["none", "a", "b", "c"]
    )
    counts = np.array(results["confusion"])
    assert counts.shape == (4, 4)
    assert counts.sum(1).tolist() == [0, 9, 10, 11]
    assert counts.trace() / 30 == results["linear_top1"] < 1
    expected = {name: counts[i, i] / counts[i].sum() for i, name in enumerate("abc", start=1)}
    assert results["per_class"] == pytest.approx(expected, rel=1e-12)


def test_confusion_has_a_row_for_each_true_class() -> None:
    generator = torch.Generator().manual_seed(0)
    labels, predicted = torch.randint(4, (2, 50), generator=generator)
    expected = metrics.confusion_matrix(labels.numpy(), predicted.numpy())
    np.testing.assert_array_equal(confusion_matrix(labels, predicted).numpy(), expected)


def test_c_is_chosen_without_the_validation_set(small: Sets) -> None:
    train, y, val, y_val = small
    one, other = evaluate(*small), evaluate(train, y, -val, y_val.flip(0))
    assert one["linear_c"] == other["linear_c"]
    assert one["linear_top1"] != other["linear_top1"]


def test_one_search_serves_every_k(small: Sets, monkeypatch: pytest.MonkeyPatch) -> None:
    searches = []
    search = nearest_neighbors

    def spy(*arguments: Tensor, k: int) -> tuple[Tensor, Tensor]:
        searches.append(k)
        return search(*arguments, k=k)

    monkeypatch.setattr("duality_ssl.evaluation.knn.nearest_neighbors", spy)
    results = evaluate(*small, settings=only("knn", k=(5, 1, 20)))
    assert searches == [20]
    assert results == {
        "knn_top1": knn_top1(*small, k=5),
        "knn1_top1": knn_top1(*small, k=1),
        "knn20_top1": knn_top1(*small, k=20),
    }


def test_low_shot_is_few_labels_at_other_counts(small: Sets) -> None:
    results = evaluate(*small, settings=only("low_shot", few_label_draws=3))
    assert set(results) == {f"{name}_{what}" for name in LOW_SHOT for what in ("top1", "std")}
    for name, per_class in {
        "labels1": 1,
        "labels10": 10,
        "percent1": 0.01,
        "percent10": 0.1,
    }.items():
        expected = few_label_top1(*small, per_class=per_class, draws=3)
        assert (results[f"{name}_top1"], results[f"{name}_std"]) == expected


def test_protocols_of_each_kind_are_called_and_joined(
    small: Sets, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, data, embeddings = torch.nn.Linear(5, 2), object(), small[2][:, :2]

    def shape(z: Tensor, settings: Settings) -> dict[str, Any]:
        return {"width": float(z.shape[1]), "arrays": {"row": z[0].tolist()}}

    def shown(*seen: object) -> dict[str, Any]:
        assert seen == (network, data, settings)
        return {"shown": 1.0, "arrays": {"pixels": [1, 2]}}

    monkeypatch.setitem(protocols.LABEL_FREE, "shape", shape)
    monkeypatch.setitem(protocols.OF_NETWORK, "shown", shown)
    settings = only("shape", "shown")
    results = evaluate(
        *small, val_embeddings=embeddings, settings=settings, network=network, data=data
    )
    rows = {"row": embeddings[0].tolist(), "row_features": small[2][0].tolist()}
    assert results == {
        **{"width": 2.0, "width_features": 5.0, "shown": 1.0},
        "arrays": {**rows, "pixels": [1, 2]},
    }
    assert "shown" not in evaluate(*small, settings=settings)


def test_unknown_protocol_is_refused(small: Sets) -> None:
    with pytest.raises(ValueError, match=r"among linear, knn, .* but got 'liner'"):
        evaluate(*small, settings=only("liner"))


@pytest.mark.parametrize("field", ["protocols", "k"])
def test_empty_list_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=rf"`evaluation.{field}` to name at least one"):
        Settings(**{field: ()})


def test_inference_tensors_are_evaluated(small: Sets) -> None:
    """What a user computes under `torch.inference_mode`."""
    with torch.inference_mode():
        features = small[0] * 1, small[2] * 1
    assert evaluate(features[0], small[1], features[1], small[3]) == evaluate(*small)
