"""Passes over the images of a test, outside a Trainer."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.image_files import write_folder
from torch import Tensor

from duality_ssl.data import SSLDataModule, View
from duality_ssl.data.passes import Passes

CPU = torch.device("cpu")
VIEW = View()


def passes(data: SSLDataModule, split: str = "train", seed: int = 0) -> Passes:
    data.setup("test")
    return Passes(data, split, CPU, seed)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_folder(tmp_path)
    return tmp_path


def test_plain_images_are_those_of_the_test() -> None:
    data = SSLDataModule(batch_size=100)
    own = passes(data, "val")
    loader = data.test_dataloader()[1]
    batches = [data.on_after_batch_transfer(batch, 1) for batch in loader]
    rows = np.arange(len(own.labels))
    images, labels = (torch.cat(part) for part in zip(*own.plain(rows, 50), strict=True))
    assert torch.equal(images, torch.cat([each[0][0] for each in batches]))
    assert torch.equal(labels, torch.cat([each[1] for each in batches]))
    some = np.array([7, 3, 300])
    ((few, own_labels),) = own.plain(some)
    assert torch.equal(few, images[some])
    assert torch.equal(own_labels, labels[some])


def test_an_epoch_is_an_order_of_its_own_in_whole_batches() -> None:
    own, rows = passes(SSLDataModule()), np.arange(10, 33)
    batches = own.shuffled(rows, 5, epoch=0)
    assert [len(batch) for batch in batches] == [5, 5, 5, 5]
    assert {*np.concatenate(batches)} < {*rows}
    assert np.array_equal(batches, own.shuffled(rows, 5, epoch=0))
    assert not np.array_equal(batches, own.shuffled(rows, 5, epoch=1))
    assert not np.array_equal(batches, passes(SSLDataModule(), seed=1).shuffled(rows, 5, epoch=0))


def drawn(own: Passes, epoch: int = 0, batches: tuple[list[int], ...] = ([3, 5], [8])) -> Tensor:
    """Three views of three images, shape ``(3, 3, C, S, S)``."""
    parts = own.views([np.array(rows) for rows in batches], (VIEW,) * 3, epoch)
    return torch.cat([torch.stack(images, dim=1) for images, _ in parts])


@pytest.mark.parametrize("source", ["digits", "folder"])
def test_views_depend_on_seed_epoch_and_batch_alone(source: str, folder: Path) -> None:
    def own(seed: int = 0, **options: int) -> Passes:
        return passes(SSLDataModule(source, root=folder, image_size=8, **options), seed=seed)

    first = drawn(own())
    assert first.shape[:2] == (3, 3)
    assert torch.equal(first, drawn(own(batch_size=7, num_workers=2)))
    differences = (drawn(own(seed=1)), drawn(own(), epoch=1), first.flip(1))
    for other in differences:
        assert not torch.equal(first, other)


def test_labels_come_with_the_images() -> None:
    own = passes(SSLDataModule())
    found = [labels for _, labels in own.views([np.array([5, 9]), np.array([2])], (VIEW,))]
    assert [labels.tolist() for labels in found] == [
        own.labels[[5, 9]].tolist(),
        own.labels[[2]].tolist(),
    ]


def test_a_view_that_changes_nothing_is_the_plain_image() -> None:
    own = passes(SSLDataModule())
    same = View(scale=(1, 1), ratio=(1, 1), flip=0, jitter=0, gray=0, blur=0)
    rows = np.arange(5)
    (((view,), _),) = own.views([rows], (same,))
    ((plain, _),) = own.plain(rows)
    torch.testing.assert_close(view, plain)


def test_the_seed_draws_the_crops_of_files_too(folder: Path) -> None:
    crop, rows = View(scale=(0.1, 0.5), flip=0, jitter=0, gray=0, blur=0), [np.arange(4)]
    data = SSLDataModule("folder", root=folder, image_size=8)
    first, again, other = (
        next(passes(data, seed=seed).views(rows, (crop,)))[0][0] for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_batch_draws_anew() -> None:
    own, rows = passes(SSLDataModule()), np.array([3, 5])
    first, second = ([*views] for views, _ in own.views([rows, rows], (VIEW,)))
    assert not torch.equal(first[0], second[0])


def test_grey_images_are_rgb_for_a_network_of_colours(tmp_path: Path) -> None:
    root = tmp_path / "colour"
    write_folder(root)
    data = SSLDataModule("folder", root=root, image_size=16, probe_source="digits")
    own = passes(data)
    (((view,), _),) = own.views([np.arange(3)], (View(jitter=0),))
    ((plain, _),) = own.plain(np.arange(3))
    assert view.shape == plain.shape == (3, 3, 16, 16)
