from pathlib import Path

import pytest
import torch
from helpers.callback_stubs import PlainModule, StubData, StubModule, plain_loaders, two_views
from helpers.fits import fit, trainer

from duality_ssl.callbacks import OnlineKNN
from duality_ssl.callbacks.knn import FeatureBank
from duality_ssl.evaluation import knn_top1


@pytest.mark.parametrize(
    ("rows", "kept"),
    [([4], range(4)), ([4, 4], range(3, 8)), ([13], range(8, 13)), ([3, 3, 3, 3], range(7, 12))],
    ids=["part", "wraps", "more_than_fits", "wraps_twice"],
)
def test_bank_keeps_the_latest(rows: list[int], kept: range) -> None:
    bank = FeatureBank(5)
    values = iter(range(100))
    for n in rows:
        labels = torch.tensor([next(values) for _ in range(n)])
        bank.add(labels[:, None].float().repeat(1, 2), labels)
    features, labels = bank.gather()
    assert sorted(labels.tolist()) == list(kept)
    assert torch.equal(features[:, 0].long(), labels)


def test_bank_gathers_labelled_rows_only() -> None:
    bank = FeatureBank(8)
    bank.add(torch.arange(4.0)[:, None], torch.tensor([0, -1, 2, -1]))
    features, labels = bank.gather()
    assert (features[:, 0].tolist(), labels.tolist()) == ([0, 2], [0, 2])


@pytest.mark.parametrize("labels", ["own", "probe"], ids=["labelled_pretraining", "probe_set"])
def test_accuracy_is_that_of_the_offline_knn(tmp_path: Path, labels: str) -> None:
    data, module = StubData(labels), StubModule(lr=0.0)
    run = fit(tmp_path, module, data, OnlineKNN(k=7), epochs=3)
    with torch.no_grad():
        val = module.backbone(data.val.tensors[0])
        if labels == "own":
            samples = [data.train[i] for i in range(len(data.train))]
            views, y = two_views(samples)
            train, y = torch.cat([module.backbone(view) for view in views]), y.repeat(2)
        else:
            train, y = module.backbone(data.probe.tensors[0]), data.probe.tensors[1]
    expected = knn_top1(train, y, val, data.val.tensors[1], k=7)
    assert run.callback_metrics["val/knn_top1"].item() == pytest.approx(expected, abs=1e-6)
    assert run.callback_metrics["val/knn_top5"] >= run.callback_metrics["val/knn_top1"]


def test_bank_is_one_epoch_at_most(tmp_path: Path) -> None:
    knn = OnlineKNN()
    fit(tmp_path, StubModule(), StubData(), knn, epochs=3)
    assert len(knn._bank.gather()[1]) == 2 * 128
    small = OnlineKNN(bank_size=10, k=20)  # k is more than the bank holds
    run = fit(tmp_path, StubModule(), StubData(), small)
    assert len(small._bank.gather()[1]) == 10
    assert 0 < run.callback_metrics["val/knn_top1"] <= 1


def test_any_module_has_neighbours(tmp_path: Path) -> None:
    knn = OnlineKNN(num_classes=8)
    module = PlainModule(lambda h, y: {"features": (h, h, h), "labels": y})
    run = fit(tmp_path, module, plain_loaders(), knn)
    assert len(knn._bank.gather()[1]) == 3 * 128
    assert run.callback_metrics["val/knn_top1"] > 0.9


def test_without_labels_it_is_off_and_says_so(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"OnlineKNN is off: the data .*--data.probe_root"):
        run = fit(tmp_path, StubModule(), StubData(labels=None), OnlineKNN())
    assert "val/knn_top1" not in run.callback_metrics


def test_validate_takes_neighbours_from_a_set_of_its_own(tmp_path: Path) -> None:
    run = trainer(tmp_path, OnlineKNN())
    run.validate(StubModule(), StubData(), verbose=False)
    assert "val/knn_top1" not in run.callback_metrics
    run.validate(StubModule(), StubData("probe"), verbose=False)
    assert run.callback_metrics["val/knn_top1"] > 0.8


@pytest.mark.parametrize("arguments", [{"k": 0}, {"bank_size": 0}, {"temperature": 0.0}])
def test_arguments_are_checked(arguments: dict) -> None:
    with pytest.raises(ValueError, match="Expected `k` and `bank_size`"):
        OnlineKNN(**arguments)
