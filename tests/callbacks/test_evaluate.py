"""Features kept beside a checkpoint, and further data sets, in an offline evaluation."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.callback_stubs import StubData, StubModule, trainer
from helpers.gloo_processes import Processes, trainer_options
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch import Tensor

from duality_ssl.callbacks import OfflineEvaluation
from duality_ssl.data import SSLDataModule, TransferSet
from duality_ssl.evaluation import Settings, protocols

QUICK: dict[str, Any] = {"protocols": ("knn", "ranks")}


def digits(**options: Any) -> SSLDataModule:
    """Digits of 4 x 4 pixels, which the stub's network takes."""
    return SSLDataModule("digits", **{"image_size": 4, "subset": 100, "batch_size": 64} | options)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    keep = ModelCheckpoint(dirpath=tmp_path / "checkpoints", filename="last")
    run = trainer(tmp_path, keep, epochs=1, enable_checkpointing=True)
    run.fit(StubModule(), datamodule=StubData())
    return tmp_path / "checkpoints" / "last.ckpt"


def run_test(
    checkpoint: Path,
    data: SSLDataModule | None = None,
    module: StubModule | None = None,
    **options: Any,
) -> tuple[dict[str, Any], int]:
    """Evaluate; return the record, and the number of batches that the network has seen."""
    module = module or StubModule()
    run = trainer(checkpoint.parents[1], OfflineEvaluation(**QUICK | options))
    run.test(module, data or digits(), ckpt_path=checkpoint, verbose=False)
    return json.loads((checkpoint.parent / "evaluation.json").read_text()), module.forwards


ALL = 2 + 6  # batches of 100 and 360 images of at most 64


def test_second_test_needs_no_forward_pass(checkpoint: Path) -> None:
    first, second = run_test(checkpoint), run_test(checkpoint)
    assert (first[1], second[1]) == (ALL, 0)
    assert first[0] == second[0]
    assert [path.name for path in (checkpoint.parent / "features-cache").iterdir()] == [
        "last-test.npz"
    ]


def test_protocol_added_later_gets_what_it_would_have_got(checkpoint: Path) -> None:
    run_test(checkpoint)
    later = run_test(checkpoint, protocols=("few_label",), few_label_draws=2)
    fresh = run_test(checkpoint, protocols=("few_label",), few_label_draws=2, cache=False)
    assert (later[1], fresh[1]) == (0, ALL)
    assert later[0] == fresh[0]


def other_weights(checkpoint: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"]["backbone.1.weight"].neg_()
    torch.save(content, checkpoint)


def damage(checkpoint: Path) -> None:
    kept = checkpoint.parent / "features-cache" / "last-test.npz"
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 255
    kept.write_bytes(content)


def cut(checkpoint: Path) -> None:
    kept = checkpoint.parent / "features-cache" / "last-test.npz"
    kept.write_bytes(kept.read_bytes()[:1000])


@pytest.mark.parametrize("change", [other_weights, damage, cut])
def test_changed_files_are_noticed(checkpoint: Path, change: Callable[[Path], None]) -> None:
    run_test(checkpoint)
    change(checkpoint)
    again, seen = run_test(checkpoint)
    assert seen == ALL
    assert again == run_test(checkpoint, cache=False)[0]
    assert run_test(checkpoint)[1] == 0


@pytest.mark.parametrize(
    "options", [{"subset": 101}, {"image_size": 3}], ids=["images", "image_size"]
)
def test_other_images_are_noticed(checkpoint: Path, options: dict[str, Any]) -> None:
    run_test(checkpoint, module=Pixels())
    assert run_test(checkpoint, digits(**options), Pixels())[1] == ALL


def test_other_pixels_are_noticed(checkpoint: Path) -> None:
    run_test(checkpoint)
    data = digits()
    data.setup("test")
    data.test_dataloader()[1].dataset.images.images.bitwise_not_()
    assert run_test(checkpoint, data)[1] == ALL


def test_part_of_the_images_is_not_kept(tmp_path: Path, checkpoint: Path) -> None:
    run = trainer(tmp_path, OfflineEvaluation(**QUICK), limit_test_batches=1)
    run.test(StubModule(), digits(), ckpt_path=checkpoint, verbose=False)
    assert not (checkpoint.parent / "features-cache").exists()


def test_cache_that_cannot_be_written_leaves_the_evaluation(checkpoint: Path) -> None:
    (checkpoint.parent / "features-cache").touch()
    with pytest.warns(UserWarning, match="The features cannot be kept in .*last-test.npz"):
        assert run_test(checkpoint)[0]["knn_top1"] > 0


class Pixels(StubModule):
    """Its features are the images."""

    def _represent(self, batch: Any) -> dict[str, Tensor]:
        self.forwards += 1
        (images,), labels = batch
        return {name: images.flatten(1) for name in ("features", "embeddings")} | {"labels": labels}


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    """Two classes of RGB images of 9 x 7 pixels, one red, one green."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 5)):
        for channel, name in enumerate(("rose", "leaf")):
            folder = tmp_path / "flowers" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 200, (9, 7, 3), dtype=np.uint8)
                pixels[..., channel] += 55
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "flowers"


def evaluate_flowers(
    folder: Path, flowers: Path, sets: tuple[TransferSet, ...], probe: str
) -> None:
    named = {"probe_source": probe} if probe else {}
    data = SSLDataModule("folder", flowers, 4, 6, **named)
    run = trainer(folder, OfflineEvaluation(sets=sets, **QUICK), **trainer_options())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run.test(Pixels(), data, verbose=False)


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "evaluation.json").read_text())


def test_set_is_prepared_and_evaluated_as_a_probe_of_the_same_data(
    tmp_path: Path, flowers: Path
) -> None:
    evaluate_flowers(tmp_path / "sets", flowers, (TransferSet("digits"),), "")
    evaluate_flowers(tmp_path / "probe", flowers, (), "digits")
    found, expected = record(tmp_path / "sets"), record(tmp_path / "probe")
    assert found["num_train"] == 24
    assert found["sets"].keys() == {"digits"}
    assert found["sets"]["digits"] == {key: expected[key] for key in found["sets"]["digits"]}
    assert found["sets"]["digits"]["num_train"] == 1437
    assert found["sets"]["digits"]["knn_top1"] > 0.8


def test_sets_of_two_processes_are_those_of_one(
    tmp_path: Path, flowers: Path, gloo_processes: Callable[[int], Processes]
) -> None:
    sets = (TransferSet("folder", str(flowers), "again"),)
    evaluate_flowers(tmp_path / "one", flowers, sets, "")
    gloo_processes(2).run(evaluate_flowers, tmp_path / "two", flowers, sets, "")
    one, two = record(tmp_path / "one"), record(tmp_path / "two")
    assert one == two
    assert one["sets"]["again"] == {key: one[key] for key in one["sets"]["again"]}


def forwards(checkpoint: Path) -> int:
    """Evaluate; return the number of batches that the network of this process has seen."""
    module, data = StubModule(), digits()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = trainer(checkpoint.parent, OfflineEvaluation(**QUICK), **trainer_options())
        run.test(module, data, ckpt_path=checkpoint, verbose=False)
    return module.forwards


def test_two_processes_take_what_the_first_has_kept(
    checkpoint: Path, gloo_processes: Callable[[int], Processes]
) -> None:
    records = []
    for seen in (4, 0):  # batches of 50 and 180 images
        assert gloo_processes(2).run(forwards, checkpoint) == [seen, seen]
        records.append(record(checkpoint.parent))
    assert records[0] == records[1]


def test_features_of_a_set_are_kept(checkpoint: Path) -> None:
    sets = (TransferSet("digits", name="again"),)
    first, second = (run_test(checkpoint, sets=sets) for _ in range(2))
    assert (first[1], second[1]) == (ALL + 23 + 6, 0)  # all 1437 digits
    assert first[0] == second[0]


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        ([TransferSet("digits"), TransferSet("digits")], "different names .* digits, digits"),
        ([TransferSet("digits", name="same"), TransferSet("folder", "x/same")], "different names"),
    ],
    ids=["source", "folder"],
)
def test_sets_of_one_name_are_refused(sets: list[TransferSet], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        OfflineEvaluation(sets=tuple(sets))


def test_name_of_a_set_is_the_name_of_a_file() -> None:
    with pytest.raises(ValueError, match="without slashes, but got 'a/b'"):
        TransferSet("digits", name="a/b")


def test_sets_need_images_of_the_package(tmp_path: Path) -> None:
    run = trainer(tmp_path, OfflineEvaluation(sets=(TransferSet("digits"),)))
    with pytest.raises(ValueError, match=r"Expected an SSLDataModule .* but got StubData"):
        run.test(StubModule(), StubData(), verbose=False)


def test_colour_is_refused_by_a_grey_network(flowers: Path) -> None:
    with pytest.raises(ValueError, match=r"Expected grey images .* `flowers` is RGB"):
        TransferSet("folder", str(flowers)).images(digits())


def test_unlabelled_set_is_refused(flowers: Path) -> None:
    data = SSLDataModule("folder", flowers, 4, 6)
    with pytest.raises(ValueError, match=r"Expected labelled images .* of `rose`"):
        TransferSet("folder", str(flowers / "train" / "rose")).images(data)


def test_protocols_of_images_need_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(protocols.OF_NETWORK, "shown", lambda *_: {"shown": 1.0})
    run = trainer(tmp_path, OfflineEvaluation(protocols=("shown",)))
    with pytest.warns(UserWarning, match="The protocols shown are left out: .* SSLDataModule"):
        run.test(StubModule(), StubData(), verbose=False)
    run.test(StubModule(), digits(), verbose=False)
    assert record(tmp_path)["shown"] == run.callback_metrics["test/shown"] == 1


def test_protocols_may_train_a_network_on_the_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test runs in inference mode, in which nothing can be trained."""

    def train(network: StubModule, data: SSLDataModule, settings: Settings) -> dict[str, float]:
        images, _ = data.on_after_batch_transfer(next(iter(data.test_dataloader()[0])), 0)
        with torch.enable_grad():
            network.backbone(images[0]).sum().backward()
        return {"slope": network.backbone[1].weight.grad.norm().item()}

    monkeypatch.setitem(protocols.OF_NETWORK, "train", train)
    run = trainer(tmp_path, OfflineEvaluation(protocols=("train",)))
    run.test(StubModule(), digits(), verbose=False)
    assert record(tmp_path)["slope"] > 0


def test_record_has_a_line_an_entry(tmp_path: Path) -> None:
    run = trainer(tmp_path, OfflineEvaluation(protocols=("linear",)))
    run.test(StubModule(), StubData(), verbose=False)
    lines = (tmp_path / "evaluation.json").read_text().splitlines()
    assert len(lines) == len(record(tmp_path)) + 2
    assert record(tmp_path)["per_class"].keys() == {*StubData().class_names}


def test_nothing_is_logged_but_numbers(tmp_path: Path) -> None:
    run = trainer(tmp_path, OfflineEvaluation(sets=(TransferSet("digits"),), **QUICK))
    run.test(StubModule(), digits(), verbose=False)
    names = {"knn_top1", "rankme", "rankme_features"}
    expected = {f"test/{name}" for name in names} | {f"test/digits/{name}" for name in names}
    assert set(run.callback_metrics) == expected
