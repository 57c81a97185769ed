"""The data module: contracts of batches and loaders, determinism, resuming, errors."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.image_files import write_cifar10, write_folder, write_image, write_stl10
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from PIL import Image
from torch import Tensor
from torchvision import datasets

from duality_ssl.callbacks import OnlineKNN
from duality_ssl.callbacks.views import view_grid
from duality_ssl.data import (
    ArrayImages,
    ImageSource,
    SSLDataModule,
    View,
    ViewChanges,
    register_source,
)
from duality_ssl.data.augment.color import normalize
from duality_ssl.data.loader import BatchLoader
from duality_ssl.data.sources import base


class Recorder(LightningModule):
    """Keeps what the training loop hands it; has one parameter to train."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.training_batches: list[tuple[int, list[Tensor], Tensor]] = []
        self.evaluation: list[tuple[int, Tensor, Tensor]] = []

    def training_step(self, batch: tuple[list[Tensor], Tensor], batch_idx: int) -> Tensor:
        views, labels = batch
        self.training_batches.append((self.current_epoch, views, labels))
        return (self.weight * views[0].mean()).sum()

    def validation_step(
        self, batch: tuple[list[Tensor], Tensor], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        (images,), labels = batch
        self.evaluation.append((dataloader_idx, images, labels))

    test_step = validation_step
    predict_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def trainer(**arguments: object) -> Trainer:
    quiet = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
    }
    return Trainer(**(quiet | arguments))


def fit(module: SSLDataModule, **arguments: object) -> Recorder:
    model = Recorder()
    trainer(**({"max_epochs": 1} | arguments)).fit(model, module)
    return model


def test_digits_by_default() -> None:
    model = fit(SSLDataModule(batch_size=100))
    assert len(model.training_batches) == 14
    for _, views, labels in model.training_batches:
        assert [view.shape for view in views] == [(100, 1, 16, 16)] * 2
        assert views[0].dtype == torch.float32
        assert labels.shape == (100,)
        assert labels.dtype == torch.int64
        assert not torch.equal(*views)
    shown = torch.cat([labels for _, _, labels in model.training_batches])
    assert shown.bincount().min() > 120
    (loader_index, images, _), *_ = model.evaluation
    assert loader_index == 0
    assert images.shape[1:] == (1, 16, 16)
    assert sum(len(labels) for _, _, labels in model.evaluation) == 360
    everything = torch.cat([view for _, views, _ in model.training_batches for view in views])
    assert everything.mean().abs() < 0.5
    assert 0.5 < everything.std() < 1.5


def test_attributes_of_a_labelled_source() -> None:
    module = SSLDataModule(batch_size=32, image_size=20)
    assert (module.batch_size, module.image_size, module.channels) == (32, 20, 1)
    assert module.num_classes == 10
    assert module.class_names == tuple("0123456789")
    assert module.probe_is_pretrain
    assert len(module.val_dataloader()) == 1
    assert [len(loader.dataset) for loader in module.test_dataloader()] == [1437, 360]


def test_training_batch_matches_its_source() -> None:
    """Without any randomness in a view it is the image, with its label."""
    still = View(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0, jitter=0, gray=0, blur=0)
    module = SSLDataModule(batch_size=50, image_size=8, view1=still)
    train = module._pretrain_images()
    loader = module.train_dataloader()
    requests = list(loader.sampler)
    for wanted, batch in zip(requests, loader, strict=True):
        (view1, view2), labels = module.on_after_batch_transfer(batch, 0)
        expected = normalize(train.images[wanted.indices] / 255, (0.3054,), (0.3760,))
        torch.testing.assert_close(view1, expected, atol=1e-5, rtol=0)
        assert torch.equal(view1, view2)
        assert torch.equal(labels, train.labels[wanted.indices])


def test_second_view_has_its_own_recipe() -> None:
    plain, inverted = View(jitter=0, blur=0), ViewChanges(solarize=1.0)
    module = SSLDataModule(batch_size=64, view1=plain, view2=inverted)
    (view1, view2), _ = module.on_after_batch_transfer(next(iter(module.train_dataloader())), 0)
    assert view1.max() > 1.5  # white strokes, which the second view has not
    assert view2.max() < 0.6


@pytest.mark.parametrize("kind", ["arrays", "files"])
def test_workers_change_no_bit(kind: str, tmp_path: Path) -> None:
    write_folder(tmp_path, train=4, val=1)
    source = {"source": "folder", "root": tmp_path, "image_size": 16} if kind == "files" else {}
    runs = []
    for workers in (0, 2):
        torch.manual_seed(workers)  # nothing may depend on the global generator
        module = SSLDataModule(**source, batch_size=4, num_workers=workers, subset=8)
        runs.append(fit(module, max_epochs=2, limit_val_batches=0))
    assert len(runs[0].training_batches) == 4
    for one, other in zip(runs[0].training_batches, runs[1].training_batches, strict=True):
        assert torch.equal(one[2], other[2])
        assert all(map(torch.equal, one[1], other[1]))
    first, second = (runs[0].training_batches[i][1][0] for i in (0, 2))
    assert not torch.equal(first, second)  # epochs differ


def test_seed_changes_order_and_views() -> None:
    batches = [next(iter(SSLDataModule(seed=seed).train_dataloader())) for seed in (0, 0, 1)]
    assert torch.equal(batches[0].images[0], batches[1].images[0])
    assert not torch.equal(batches[0].images[0], batches[2].images[0])
    assert batches[0].seed == batches[1].seed != batches[2].seed


@pytest.mark.parametrize(
    ("saved", "interrupted_at", "limit", "workers"),
    [
        pytest.param({"every_n_train_steps": 1}, 2, 4, 0, id="within epoch 0"),
        pytest.param({"every_n_train_steps": 1}, 4, 6, 0, id="last step of epoch 0, limited"),
        pytest.param({"every_n_train_steps": 1}, 4, 4, 0, id="last step of epoch 0"),
        pytest.param({"every_n_train_steps": 1}, 5, 6, 1, id="within epoch 1, limited, a worker"),
        pytest.param({"save_on_train_epoch_end": True}, 4, 4, 0, id="end of epoch 0"),
        pytest.param({"save_on_train_epoch_end": False}, 4, 6, 0, id="validation of epoch 0"),
    ],
)
def test_resumed_run_repeats_the_interrupted_one(
    tmp_path: Path, saved: dict[str, object], interrupted_at: int, limit: int, workers: int
) -> None:
    """Within an epoch and at its end, whatever is fetched ahead."""

    def module() -> SSLDataModule:
        return SSLDataModule(batch_size=16, subset=16 * limit, num_workers=workers)

    save = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, **saved)
    settings = {"max_epochs": 3, "limit_val_batches": 1, "limit_train_batches": 4}
    whole = Recorder()
    trainer(**settings, callbacks=[save], enable_checkpointing=True).fit(whole, module())
    resumed = Recorder()
    checkpoint = tmp_path / f"step={interrupted_at}.ckpt"
    trainer(**settings).fit(resumed, module(), ckpt_path=checkpoint, weights_only=False)
    expected = whole.training_batches[interrupted_at:]
    assert len(whole.training_batches) == 12
    assert len(resumed.training_batches) == len(expected)
    for (epoch1, views1, _), (epoch2, views2, _) in zip(
        resumed.training_batches, expected, strict=True
    ):
        assert epoch1 == epoch2
        assert all(map(torch.equal, views1, views2))
    torch.testing.assert_close(resumed.weight, whole.weight, rtol=0, atol=0)


def test_probe_set_of_a_folder_is_not_read_class_by_class(tmp_path: Path) -> None:
    write_folder(tmp_path / "probe", classes=("a", "b", "c", "d"), train=10, val=2)
    root = tmp_path / "probe"
    module = SSLDataModule("folder", root, 10, 16, probe_root=root)
    probe, val = module.val_dataloader()
    assert min(len(batch.labels.unique()) for batch in probe) > 1
    in_order = torch.arange(4)
    assert torch.cat([b.labels for b in val]).tolist() == in_order.repeat_interleave(2).tolist()
    tested = torch.cat([batch.labels for batch in module.test_dataloader()[0]])
    assert tested.tolist() == in_order.repeat_interleave(10).tolist()


def test_knn_of_a_small_bank_knows_all_classes_of_a_folder(tmp_path: Path) -> None:
    """Four plain colours, 160 images and a bank of 40: read in order, it would hold one class."""
    colours = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0), "white": (255,) * 3}
    for split, n in (("train", 40), ("val", 5)):
        for name, colour in colours.items():
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(n):
                Image.new("RGB", (16, 16), colour).save(folder / f"{i}.png")

    class Pixels(Recorder):
        def validation_step(
            self, batch: tuple[list[Tensor], Tensor], batch_idx: int, dataloader_idx: int = 0
        ) -> dict[str, Tensor]:
            (images,), labels = batch
            return {"features": images.flatten(1), "labels": labels}

    data = SSLDataModule("folder", tmp_path, 16, 16, probe_root=tmp_path)
    run = trainer(callbacks=[OnlineKNN(k=5, bank_size=40)])
    run.validate(Pixels(), data, verbose=False)
    assert run.callback_metrics["val/knn_top1"] == 1


def test_lightning_leaves_the_samplers_alone() -> None:
    distributed = trainer(strategy="ddp", devices=2)
    assert distributed._accelerator_connector.is_distributed
    module = SSLDataModule()
    for loader in (module.train_dataloader(), *module.val_dataloader()):
        assert not distributed._data_connector._requires_distributed_sampler(loader)


def test_overfitting_repeats_the_same_images_in_other_views() -> None:
    model = fit(SSLDataModule(batch_size=32), overfit_batches=2, max_epochs=2)
    labels = [labels.tolist() for _, _, labels in model.training_batches]
    assert len(labels) == 4
    assert labels[:2] == labels[2:]
    seen = [view for _, views, _ in model.training_batches for view in views]
    assert not any(map(torch.equal, *zip(*itertools.combinations(seen, 2), strict=True)))


def test_test_and_predict_in_lightning() -> None:
    module, model, runner = SSLDataModule(batch_size=128), Recorder(), trainer()
    runner.test(model, module, verbose=False)
    counts = [sum(len(y) for index, _, y in model.evaluation if index == i) for i in (0, 1)]
    assert counts == [1437, 360]
    for split, n in (("val", 360), ("train", 1437)):
        model = Recorder()
        trainer().predict(model, SSLDataModule(predict_split=split), return_predictions=False)
        assert sum(len(labels) for _, _, labels in model.evaluation) == n
    # One image is seen in one way, whoever asks.
    again = module.on_after_batch_transfer(next(iter(module.test_dataloader()[0])), 0)[0][0]
    torch.testing.assert_close(model.evaluation[0][1][: len(again)], again)


def test_evaluation_of_arrays_is_a_plain_resize() -> None:
    module = SSLDataModule(image_size=16)
    val = module._probe_images("val")
    (images,), labels = module.on_after_batch_transfer(next(iter(module.val_dataloader()[0])), 0)
    expected = torch.nn.functional.interpolate(
        val.images[: len(labels)].float(), size=(16, 16), mode="bilinear", antialias=True
    )
    expected = normalize(expected / 255, (0.3054,), (0.3760,))
    torch.testing.assert_close(images, expected, atol=1e-5, rtol=0)
    assert torch.equal(labels, val.labels[: len(labels)])


def test_pretraining_on_unlabelled_with_a_labelled_probe_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """STL-10: pretraining images have no labels, the probe's are of the same source."""
    monkeypatch.setattr(datasets, "STL10", write_stl10(tmp_path, unlabelled=12, n=7))
    module = SSLDataModule("stl10", tmp_path, batch_size=4)
    model = fit(module)
    assert not module.probe_is_pretrain
    assert module.num_classes == 10
    assert len(model.training_batches) == 3
    assert all((labels == -1).all() for _, _, labels in model.training_batches)
    assert [(i, len(y)) for i, _, y in model.evaluation] == [(0, 4), (0, 3), (1, 4), (1, 3)]
    assert [len(loader.dataset) for loader in module.test_dataloader()] == [7, 7]


def test_probe_on_another_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Grey probe images are seen as RGB; pretraining labels, of other classes, are hidden."""
    monkeypatch.setattr(datasets, "CIFAR10", write_cifar10(tmp_path))
    module = SSLDataModule("cifar10", tmp_path, batch_size=4, probe_source="digits", subset=8)
    assert not module.probe_is_pretrain
    assert module.class_names == tuple("0123456789")
    probe_train, val = module.val_dataloader()
    assert (len(probe_train.dataset), len(val.dataset)) == (1437, 360)  # the subset is not theirs
    (images,), labels = module.on_after_batch_transfer(next(iter(val)), 0)
    assert images.shape[1:] == (3, 32, 32)
    assert labels.min() >= 0
    batch = next(iter(module.train_dataloader()))
    assert batch.labels.tolist() == [-1] * 4


def test_flat_folder_trains_without_labels(tmp_path: Path) -> None:
    for i in range(8):
        write_image(tmp_path / f"{i}.png", seed=i)
    module = SSLDataModule("folder", tmp_path, batch_size=4, image_size=16)
    model = fit(module)
    assert (module.num_classes, module.class_names, module.probe_is_pretrain) == (None, None, False)
    assert all((labels == -1).all() for _, _, labels in model.training_batches)
    assert [view.shape for view in model.training_batches[0][1]] == [(4, 3, 16, 16)] * 2
    assert {index for index, _, _ in model.evaluation} == {0}
    assert sum(len(labels) for _, _, labels in model.evaluation) == 8


def test_flat_folder_with_a_probe_folder(tmp_path: Path) -> None:
    for i in range(4):
        write_image(tmp_path / "flat" / f"{i}.png", seed=i)
    write_folder(tmp_path / "labelled", train=2, val=1)
    module = SSLDataModule(
        "folder", tmp_path / "flat", 4, 16, probe_root=str(tmp_path / "labelled")
    )
    assert module.class_names == ("cat", "dog")
    assert [len(loader.dataset) for loader in module.val_dataloader()] == [4, 2]


def test_mean_and_std_undo_the_normalisation(tmp_path: Path) -> None:
    write_folder(tmp_path)
    module = SSLDataModule("folder", tmp_path, 4, 16)
    assert (module.mean, module.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    batch = next(iter(module.test_dataloader()[0]))
    (images,), _ = module.on_after_batch_transfer(batch, 0)
    grid = view_grid([images[:2]] * 2, module.mean, module.std)
    assert torch.equal(grid[:, 2:18, 2:18], batch.images[0][0])


def test_folder_views_differ_and_are_normalised(tmp_path: Path) -> None:
    write_folder(tmp_path)
    still = View(scale=(1.0, 1.0), flip=0, jitter=0, gray=0, blur=0)
    module = SSLDataModule(
        "folder", tmp_path, 4, 16, view1=still, view2=ViewChanges(scale=(0.08, 0.5))
    )
    batch = next(iter(module.train_dataloader()))
    (view1, view2), _ = module.on_after_batch_transfer(batch, 0)
    expected = normalize(batch.images[0] / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    torch.testing.assert_close(view1, expected, atol=1e-5, rtol=0)
    assert not torch.equal(view1, view2)


@pytest.mark.parametrize(
    ("subset", "count"), [(100, 100), (0.1, 144), (1.0, 1437), (1437, 1437), (1, 1)]
)
def test_subset(subset: float, count: int) -> None:
    module = SSLDataModule(subset=subset)
    assert len(module._pretrain_images()) == count
    assert len(module.test_dataloader()[0].dataset) == count  # the probe learns from it too
    assert len(module.test_dataloader()[1].dataset) == 360


@pytest.mark.parametrize(
    ("subset", "message"),
    [
        (0, r"1 to 1437 images, .* or a fraction in \(0, 1\], but got 0"),
        (1438, "but got 1438"),
        (1.5, "a count without a decimal point, .* but got 1.5"),
        (-0.5, r"but got -0.5"),
        (float("nan"), r"but got nan"),
    ],
)
def test_bad_subset(subset: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SSLDataModule(subset=subset).setup("fit")


class Numbered(ImageSource):
    """Image i is i everywhere: 100 to train on, of classes of 60, 30 and 10, and 20 others."""

    channels, image_size, mean, std = 1, 4, (0.5,), (0.3,)
    class_names = ("a", "b", "c")

    def load(self, split: str) -> ArrayImages:
        first, count = (0, 100) if split in (self.training, "train") else (200, 20)
        numbers = torch.arange(first, first + count, dtype=torch.uint8)
        labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)[:count]
        labels = labels if self.class_names else torch.full_like(labels, -1)
        return ArrayImages(numbers.view(-1, 1, 1, 1).expand(-1, 1, 4, 4), labels)

    training = "pretrain"


class Apart(Numbered):
    """Pretraining uses other images than the probe."""

    training = "train"
    pretrain_is_train = False


class Unlabelled(Numbered):
    class_names = None


@pytest.fixture
def numbered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_SOURCES", dict(base._SOURCES))
    for source in (Numbered, Apart, Unlabelled):
        register_source(source)


def numbers(images: ArrayImages) -> list[int]:
    return images.images[:, 0, 0, 0].tolist()


@pytest.mark.usefixtures("numbered")
@pytest.mark.parametrize("source", ["Numbered", "Apart", "Unlabelled"])
def test_validation_is_a_part_of_the_training_images(source: str) -> None:
    module = SSLDataModule(source, validation=0.2, seed=3)
    train, val = (module._probe_images(split) for split in ("train", "val"))
    assert sorted(numbers(train) + numbers(val)) == [*range(100)]
    assert len(val) == 20
    pretrain = numbers(module._pretrain_images())
    assert pretrain == ([*range(200, 220)] if source == "Apart" else numbers(train))
    if source != "Unlabelled":
        assert val.labels.bincount().tolist() == [12, 6, 2]
    other = SSLDataModule(source, validation=0.2, seed=4)._probe_images("val")
    assert numbers(other) != numbers(val)


@pytest.mark.usefixtures("numbered")
def test_validation_is_the_same_for_any_number_of_processes_and_any_subset(
    pretend_processes: Callable[[int, int], None],
) -> None:
    alone = SSLDataModule("Numbered", validation=0.2)._probe_images("val")
    pretend_processes(1, 4)
    module = SSLDataModule("Numbered", validation=0.2, subset=0.5, batch_size=2)
    assert numbers(module._probe_images("val")) == numbers(alone)
    assert len(module._pretrain_images()) == 40
    assert not {*numbers(module._pretrain_images())} & {*numbers(alone)}


@pytest.mark.usefixtures("numbered")
@pytest.mark.parametrize(
    ("validation", "message"),
    [(1, "fraction, 0 or more, but got 1"), (-0.1, "got -0.1"), (0.001, "some of 100 images")],
)
def test_bad_validation(validation: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SSLDataModule("Numbered", validation=validation).setup("fit")


@pytest.mark.parametrize("world", [1, 4])
def test_fewer_images_than_a_batch(
    world: int, pretend_processes: Callable[[int, int], None]
) -> None:
    pretend_processes(0, world)
    module = SSLDataModule(batch_size=2000)
    message = (
        rf"one batch of {2000 * world} images \(`data.batch_size` 2000, {world} processes\), but "
        rf"the pretraining set `digits` has 1437: lower `data.batch_size`"
    )
    with pytest.raises(ValueError, match=message):
        module.train_dataloader()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "digit"}, "Unknown image source 'digit'. Did you mean digits"),
        ({"probe_source": "cifar"}, "Unknown image source 'cifar'. Did you mean cifar10"),
        ({"probe_source": "cifar10"}, "`data.probe_source` to be grey as `digits` is"),
        ({"batch_size": 0}, "`data.batch_size` to be a whole number, 1 or more, but got 0"),
        ({"num_workers": -1}, "`data.num_workers` to be a whole number, 0 or more, but got -1"),
        ({"image_size": 0}, "`data.image_size` to be a whole number, 1 or more, but got 0"),
        ({"seed": -1}, "`data.seed` to be a whole number, 0 or more, but got -1"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, dict) else "",
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SSLDataModule(**arguments)


def test_training_on_batches_of_one_image_is_refused() -> None:
    module = SSLDataModule(batch_size=1)
    with pytest.raises(ValueError, match=r"`data.batch_size` to be 2 or more for training.* got 1"):
        module.train_dataloader()
    assert len(module.test_dataloader()[1]) == 360


def test_missing_files_are_found_in_setup(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="cifar-10-batches-py"):
        SSLDataModule("cifar10", tmp_path).setup("fit")


def test_a_batch_of_somebody_else_passes_through() -> None:
    batch = (torch.zeros(2), torch.ones(2))
    assert SSLDataModule().on_after_batch_transfer(batch, 0) is batch


def test_images_that_are_not_square(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_SOURCES", dict(base._SOURCES))

    @register_source("wide")
    class Wide(ImageSource):
        channels, image_size, mean, std = 3, 12, (0.5,) * 3, (0.3,) * 3
        class_names = None

        def load(self, split: str) -> ArrayImages:
            return ArrayImages(torch.full((8, 3, 10, 30), 128, dtype=torch.uint8))

    model = fit(SSLDataModule("wide", batch_size=4))
    assert model.training_batches[0][1][0].shape == (4, 3, 12, 12)
    assert model.evaluation[0][1].shape == (4, 3, 12, 12)


def test_loader_state_of_another_epoch_is_ignored() -> None:
    loader = SSLDataModule(batch_size=100).train_dataloader()
    loader.load_state_dict({"epoch": 4, "batches": 10})
    assert len(list(loader)) == 14
    loader.load_state_dict({"epoch": 0, "batches": 10})
    assert isinstance(loader, BatchLoader)
    assert len(list(loader)) == 4
    assert len(list(loader)) == 14
    assert CombinedLoader(loader)._state_dicts() == [{"epoch": 0, "batches": 14}]
