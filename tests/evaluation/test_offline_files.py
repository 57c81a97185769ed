import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import torch
from helpers.callback_stubs import StubData, StubModule, trainer
from helpers.gloo_processes import Processes, trainer_options
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch import Tensor

from duality_ssl.callbacks import FeatureWriter, OfflineEvaluation
from duality_ssl.data import SSLDataModule
from duality_ssl.evaluation import Settings, evaluate
from duality_ssl.files import write_atomically

ACCURACIES = {"linear_top1", "linear_c", "knn_top1", "few_label_top1", "few_label_std"}
RANKS = {"rankme", "rankme_features"}
GEOMETRY = {
    *("cosine_mean", "cosine_variance", "column_fourth_ratio", "row_fourth_ratio"),
    *("gram_dominance", "covariance_dominance"),
}
LABEL_FREE = {f"{name}{of}" for name in {"alpha_req"} | GEOMETRY for of in ("", "_features")}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "checkpoints"
    keep = ModelCheckpoint(dirpath=folder, filename="last")
    run = trainer(tmp_path, keep, epochs=1, enable_checkpointing=True)
    run.fit(StubModule(), datamodule=StubData())
    return folder / "last.ckpt"


@pytest.mark.parametrize("labels", ["own", "probe"], ids=["labelled_pretraining", "probe_set"])
def test_evaluation_is_logged_and_written(tmp_path: Path, checkpoint: Path, labels: str) -> None:
    data, module = StubData(labels), StubModule(lr=0)
    run = trainer(tmp_path, OfflineEvaluation(k=3, few_label_draws=4))
    run.test(module, data, ckpt_path=checkpoint, verbose=False)
    written = json.loads((checkpoint.parent / "evaluation.json").read_text())
    train = data.train if labels == "own" else data.probe
    with torch.no_grad():
        features, val = module.backbone(train.tensors[0]), module.backbone(data.val.tensors[0])
        expected = evaluate(
            features,
            train.tensors[1],
            val,
            data.val.tensors[1],
            val_embeddings=module.projector(val),
            settings=Settings(k=3, few_label_draws=4),
        )
    assert written["confusion"] == expected.pop("confusion")
    assert written["per_class"] == pytest.approx(expected.pop("per_class"), rel=1e-5)
    assert expected.pop("arrays").keys() == written["arrays"].keys() > {"spectrum_features"}
    assert set(expected) == ACCURACIES | RANKS | LABEL_FREE
    assert {name: written[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    logged = {name: run.callback_metrics[f"test/{name}"].item() for name in expected}
    assert logged == pytest.approx(expected, rel=1e-5)
    assert written["checkpoint"] == "last.ckpt"
    assert written["method"] == "StubModule"
    assert (written["num_train"], written["num_val"], written["num_features"]) == (128, 50, 12)
    assert written["settings"]["k"] == 3
    assert [path.name for path in sorted(checkpoint.parent.iterdir())] == [
        "evaluation.json",
        "last.ckpt",
    ]


def test_files_of_another_checkpoint_have_its_name(tmp_path: Path, checkpoint: Path) -> None:
    best = checkpoint.with_name("best.ckpt")
    best.write_bytes(checkpoint.read_bytes())
    run = trainer(tmp_path, OfflineEvaluation(few_label_draws=1), FeatureWriter())
    for path in (checkpoint, best):
        run.test(StubModule(), StubData(), ckpt_path=path, verbose=False)
        run.predict(StubModule(), StubData(), ckpt_path=path, return_predictions=False)
    names = {"evaluation.json", "evaluation-best.json", "features.npz", "features-best.npz"}
    assert {path.name for path in checkpoint.parent.iterdir()} == names | {"last.ckpt", "best.ckpt"}
    written = json.loads((checkpoint.parent / "evaluation-best.json").read_text())
    assert written["checkpoint"] == "best.ckpt"


def test_unlabelled_data_has_ranks_only(tmp_path: Path) -> None:
    run = trainer(tmp_path, OfflineEvaluation())
    with pytest.warns(UserWarning, match="only label-free measures"):
        run.test(StubModule(), StubData(labels=None), verbose=False)
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert set(written) >= RANKS
    assert not set(written) & ACCURACIES
    assert written["checkpoint"] is None


def test_evaluation_compares_on_the_device_of_the_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}
    monkeypatch.setattr(
        "duality_ssl.callbacks.evaluate.evaluate", lambda *_, **options: asked.update(options) or {}
    )
    trainer(tmp_path, OfflineEvaluation()).test(StubModule(), StubData(), verbose=False)
    assert asked["device"] == torch.device("cpu")


def test_other_test_loaders_are_refused(tmp_path: Path) -> None:
    data = StubData()
    data.test_dataloader = data.predict_dataloader
    with pytest.raises(ValueError, match=r"Expected two test loaders, .* but got 1"):
        trainer(tmp_path, OfflineEvaluation()).test(StubModule(), data, verbose=False)


def test_predictions_are_written_without_pickles(tmp_path: Path, checkpoint: Path) -> None:
    data, module = StubData(), StubModule()
    run = trainer(tmp_path, FeatureWriter())
    run.predict(module, data, ckpt_path=checkpoint, return_predictions=False)
    with np.load(checkpoint.parent / "features.npz", allow_pickle=False) as file:
        arrays = dict(file)
    images, labels = data.val.tensors
    with torch.no_grad():
        features = module.backbone(images)
        embeddings = module.projector(features)
    assert set(arrays) == {"features", "embeddings", "labels"}
    np.testing.assert_allclose(arrays["features"], features.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(arrays["embeddings"], embeddings.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(arrays["labels"], labels.numpy())


class Pixels(StubModule):
    """Its features are the images."""

    def _represent(self, batch: Any) -> dict[str, Tensor]:
        (images,), labels = batch
        return {name: images.flatten(1) for name in ("features", "embeddings")} | {"labels": labels}


def predict_pixels(folder: Path, data: SSLDataModule) -> None:
    run = trainer(folder, FeatureWriter(), **trainer_options())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run.predict(Pixels(), data, return_predictions=False)


@pytest.mark.parametrize("processes", [1, 2])
def test_predictions_of_a_folder_name_their_files(
    processes: int, gloo_processes: Callable[[int], Processes], tmp_path: Path
) -> None:
    """Also where one cannot be read, and whichever process read it."""
    for i in range(9):
        (tmp_path / "é").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (28 * i,) * 3).save(tmp_path / "é" / f"{i * 11}.png")
    (tmp_path / "é" / "33.png").write_bytes(b"")
    data = SSLDataModule("folder", tmp_path / "é", 2, 8, on_bad_image="skip")
    if processes == 1:
        predict_pixels(tmp_path, data)
    else:
        gloo_processes(processes).run(predict_pixels, tmp_path, data)
    with np.load(tmp_path / "features.npz", allow_pickle=False) as file:
        features, paths = file["features"], file["paths"]
    names = [f"{i * 11}.png" for i in range(9) if i != 3]
    assert paths.tolist() == [str(tmp_path / "é" / name) for name in names]
    shown = features.reshape(8, 3, -1)[:, 0, 0] * data.std[0] + data.mean[0]
    values = [int(name[:-4]) // 11 * 28 / 255 for name in names]
    np.testing.assert_allclose(shown, values, atol=1e-5)


def test_predictions_of_a_half_precision_network_are_float32(tmp_path: Path) -> None:
    run = trainer(tmp_path, FeatureWriter("x.npz"), precision="bf16-true")
    run.predict(StubModule(), StubData(), return_predictions=False)
    with np.load(tmp_path / "x.npz") as file:
        assert file["features"].dtype == file["embeddings"].dtype == np.float32


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.json"
    write_atomically(path, lambda file: file.write(b"old"))

    def fail(file: IO[bytes]) -> None:
        file.write(b"half of the n")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]
