"""Batches of image files: crops, bad images, in this process and in workers."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.image_files import write_folder, write_image
from PIL import Image
from torchvision import transforms as tv

from duality_ssl.data import SSLDataModule, View, create_source
from duality_ssl.data.datasets import Batch, FileDataset
from duality_ssl.data.sampler import BatchRequest


def request(*indices: int, epoch: int = 0, seed: int | None = 1) -> BatchRequest:
    return BatchRequest(np.array(indices), epoch, seed)


def dataset(root: Path, split: str = "train", on_bad_image: str = "error") -> FileDataset:
    images = create_source("folder", root).load(split)
    return FileDataset(images, 24, (View(), View()), 0, on_bad_image)


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    write_folder(tmp_path)
    return tmp_path


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("<html>404 Not Found</html>")


def deleted(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [truncated, emptied, text, deleted])
@pytest.mark.parametrize("name", ["cat_0.jpg", "cat_1.png"])
def test_damaged_image_is_named(labelled: Path, name: str, damage: object) -> None:
    path = labelled / "train" / "cat" / name
    images = dataset(labelled)
    damage(path)
    error = images[request(0, 1)]
    assert isinstance(error, ValueError)
    assert str(error).startswith(f"Cannot read the image `{path}`: ")
    assert str(error).endswith("set `data.on_bad_image` to skip.")
    assert str(error).count(str(path)) == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_error_of_a_worker_is_one_sentence(labelled: Path, workers: int) -> None:
    module = SSLDataModule("folder", labelled, 4, 16, num_workers=workers)
    truncated(labelled / "train" / "cat" / "cat_0.jpg")
    with pytest.raises(ValueError, match=r"^Cannot read the image `.*cat_0.jpg`[^\n]*$"):
        list(module.train_dataloader())


@pytest.mark.parametrize("workers", [0, 2])
def test_skip_substitutes_counts_and_reports_once(labelled: Path, workers: int) -> None:
    arguments = {"num_workers": workers, "on_bad_image": "skip", "image_size": 16}
    module = SSLDataModule("folder", labelled, 6, **arguments)
    for i in (0, 1):
        emptied(labelled / "train" / "cat" / f"cat_{i}.{'png' if i else 'jpg'}")
    loader = module.train_dataloader()
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        with pytest.warns(UserWarning, match="Skipped 2 of 12 images that cannot be read, as") as w:
            batches = list(loader)
        assert len([x for x in w if "Skipped" in str(x.message)]) == 1
        assert [len(batch.labels) for batch in batches] == [6, 6]
        assert sorted(torch.cat([b.labels for b in batches]).tolist()) == [0] * 6 + [1] * 6


def test_substitute_is_the_next_readable_image(labelled: Path) -> None:
    emptied(labelled / "train" / "cat" / "cat_4.jpg")
    emptied(labelled / "train" / "cat" / "cat_5.png")
    batch = dataset(labelled, on_bad_image="skip")[request(4, 2)]
    assert batch.labels.tolist() == [1, 0]  # index 6 is the first dog
    assert [Path(name).name for name in batch.bad] == ["cat_4.jpg", "cat_5.png"]


def test_skip_gives_up_on_a_folder_of_rubbish(labelled: Path) -> None:
    images = dataset(labelled, on_bad_image="skip")
    for path in (labelled / "train").rglob("*.*"):
        emptied(path)
    assert "Cannot read any of 17 images" in str(images[request(3)])
    assert "Cannot read any of 2 images" in str(images[request(0, 1, seed=None)])


def test_skip_leaves_out_in_evaluation(labelled: Path) -> None:
    emptied(labelled / "val" / "cat" / "cat_1.png")
    module = SSLDataModule("folder", labelled, 4, 16, on_bad_image="skip")
    with pytest.warns(UserWarning, match="Skipped 1 of 6 images"):
        labels = torch.cat([batch.labels for batch in module.val_dataloader()[0]])
    assert labels.tolist() == [0, 0, 1, 1, 1]


def test_every_process_reports_its_own_bad_images(
    labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emptied(labelled / "val" / "dog" / "dog_1.png")
    for part in ("sampler", "loader"):
        monkeypatch.setattr(f"duality_ssl.data.{part}.rank", lambda: 1)
        monkeypatch.setattr(f"duality_ssl.data.{part}.world_size", lambda: 2)
    module = SSLDataModule("folder", labelled, 2, 16, on_bad_image="skip")
    with pytest.warns(UserWarning, match=r"Process 1 skipped 1 of 6 images .*dog_1.png"):
        list(module.val_dataloader()[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_knows_its_files(labelled: Path, workers: int) -> None:
    """Also where one is left out; training does not carry their names about."""
    emptied(labelled / "val" / "cat" / "cat_1.png")
    arguments = {"on_bad_image": "skip", "num_workers": workers}
    module = SSLDataModule("folder", labelled, 4, 16, **arguments)
    with pytest.warns(UserWarning, match="Skipped"):
        batches = [module.on_after_batch_transfer(b, 0) for b in module.predict_dataloader()]
    paths = [Path(path) for batch in batches for path in batch.paths]
    names = ["cat_0.jpg", "cat_2.jpg", "dog_0.jpg", "dog_1.png", "dog_2.jpg"]
    assert paths == [labelled / "val" / name[:3] / name for name in names]
    labels = torch.cat([labels for _, labels in batches])
    assert labels.tolist() == [0, 0, 1, 1, 1]
    assert not next(iter(module.train_dataloader())).paths


def test_good_folder_warns_of_nothing(labelled: Path) -> None:
    module = SSLDataModule("folder", labelled, 4, 16, on_bad_image="skip")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(module.train_dataloader())) == 3


def test_each_view_has_its_own_interpolation(labelled: Path) -> None:
    images = dataset(labelled)
    images.views = (View(), View(interpolation="bicubic"))
    boxes = images.draw_crops(40, 30, index=3, epoch=0)
    assert [box.interpolation for box in boxes] == ["bilinear", "bicubic"]


def test_crops_are_a_function_of_seed_epoch_index_and_view(labelled: Path) -> None:
    images = dataset(labelled)
    first = images[request(3, 5)]
    assert isinstance(first, Batch)
    again = images[request(7, 5, 3, seed=99)]  # other batch, other place, other batch seed
    for view in (0, 1):
        assert first.images[view].shape == (2, 3, 24, 24)
        assert torch.equal(first.images[view][0], again.images[view][2])
        assert torch.equal(first.images[view][1], again.images[view][1])
    assert not torch.equal(first.images[0], first.images[1])
    assert not torch.equal(first.images[0], images[request(3, 5, epoch=1)].images[0])
    other = FileDataset(images.images, 24, images.views, 1, "error")
    assert not torch.equal(first.images[0], other[request(3, 5)].images[0])


def test_each_view_has_the_crop_of_its_own_distribution(tmp_path: Path) -> None:
    """On a ramp of grey a crop shows as many values as its share of the width."""
    ramp = np.repeat(np.arange(200, dtype=np.uint8)[None, :, None], 200, axis=0).repeat(3, axis=2)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    whole, part = (View(scale=(area, area), ratio=(1, 1)) for area in (1.0, 0.04))
    images = create_source("folder", tmp_path).load("train")
    for views, widths in (((whole, part), [200, 40]), ((part, whole), [40, 200])):
        crops = FileDataset(images, 20, views, 0, "error")[request(0)].images
        seen = [int(crop.max()) - int(crop.min()) for crop in crops]
        assert seen == pytest.approx([width * 19 / 20 for width in widths], abs=3)


def test_crops_come_from_all_over_an_image_that_is_not_square(tmp_path: Path) -> None:
    ramp = np.repeat(np.arange(200, dtype=np.uint8)[None, :, None], 20, axis=0).repeat(3, axis=2)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    images = create_source("folder", tmp_path).load("train")
    crops = FileDataset(images, 8, (View(scale=(0.05, 0.05)),), 0, "error")
    first = [int(crops[request(0, epoch=epoch)].images[0].min()) for epoch in range(12)]
    assert min(first) < 60
    assert max(first) > 120


def test_crop_is_torchvisions_of_the_same_box(labelled: Path) -> None:
    whole = View(scale=(1.0, 1.0), ratio=(4 / 3, 4 / 3))
    images = create_source("folder", labelled).load("train")
    out = FileDataset(images, 24, (whole,), 0, "error")[request(0)].images[0][0]
    image = Image.open(images.path(0))  # 40 x 30: all of it
    expected = tv.PILToTensor()(tv.Resize((24, 24))(image))
    assert (out.int() - expected).abs().max() <= 1


def test_crops_do_not_depend_on_the_reduction(tmp_path: Path) -> None:
    """A run at 24 pixels and one at 200 see the same parts of the images."""
    write_image(tmp_path / "only.jpg", seed=5, size=(1600, 1200))
    images = create_source("folder", tmp_path).load("train")
    small, large = (
        FileDataset(images, side, (View(), View()), 0, "error")[request(0, epoch=3)].images
        for side in (24, 192)
    )
    for one, other in zip(small, large, strict=True):
        shrunk = torch.nn.functional.avg_pool2d(other.float(), 8)
        assert (one - shrunk).abs().mean() < 1


def test_subset_of_a_folder(labelled: Path) -> None:
    module = SSLDataModule("folder", labelled, 4, 16, subset=4)
    batch = next(iter(module.train_dataloader()))
    assert sorted(batch.labels.tolist()) == [0, 0, 1, 1]
