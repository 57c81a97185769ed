"""Large and small views of an image: how many, in which order, and how they are drawn."""

from pathlib import Path

import pytest
import torch
from helpers.image_files import write_folder
from torch import Tensor

from duality_ssl.data import SSLDataModule
from duality_ssl.data.augment.view import SmallView, View, ViewChanges

SMALL = SmallView(size=5)


def first_batch(data: SSLDataModule) -> list[Tensor]:
    data.setup("fit")
    views, labels = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert len(labels) == data.batch_size
    return list(views)


def test_views_alternate_and_the_first_two_are_those_of_two_views() -> None:
    other = ViewChanges(blur=0.0, solarize=0.2)
    two = SSLDataModule(batch_size=8, view2=other)
    five = SSLDataModule(batch_size=8, view2=other, views=5)
    assert five.views == (*two.views, *two.views, two.views[0])
    assert five.num_views == 5
    pair, views = first_batch(two), first_batch(five)
    assert len(views) == 5
    for ours, theirs in zip(views, pair, strict=False):
        assert torch.equal(ours, theirs)
    assert not torch.equal(views[2], views[0])


def test_small_views_come_last_and_change_no_large_one() -> None:
    two, all_views = (
        first_batch(SSLDataModule(batch_size=8, image_size=8, small_views=count, small_view=SMALL))
        for count in (0, 3)
    )
    assert [view.shape[-1] for view in all_views] == [8, 8, 5, 5, 5]
    for ours, theirs in zip(all_views, two, strict=False):
        assert torch.equal(ours, theirs)
    assert not torch.equal(all_views[2], all_views[3])


def test_small_view_follows_the_first_view_but_for_size_and_scale() -> None:
    view = SmallView(size=5, blur=0.3).of(View(jitter=0.1, scale=(0.5, 1.0)))
    assert view == View(jitter=0.1, scale=(0.05, 0.14), blur=0.3)


def test_files_are_cropped_to_the_size_of_each_view(tmp_path: Path) -> None:
    write_folder(tmp_path)
    data = SSLDataModule(
        "folder", tmp_path, batch_size=4, image_size=16, views=3, small_views=2, small_view=SMALL
    )
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert [view.shape[-1] for view in batch.images] == [16, 16, 16, 5, 5]
    views, _ = data.on_after_batch_transfer(batch, 0)
    assert [view.shape[-1] for view in views] == [16, 16, 16, 5, 5]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"views": 1}, "`data.views` to be a whole number, 2 or more, but got 1"),
        ({"small_views": -1}, "`data.small_views` to be a whole number, 0 or more"),
        ({"small_views": 2}, "`data.small_view.size` of 1 to 7 pixels, .* but got 96"),
        ({"small_views": 2, "small_view": SmallView(size=0)}, "of 1 to 7 pixels, .* but got 0"),
    ],
    ids=["one view", "negative", "not smaller", "no pixels"],
)
def test_views_that_cannot_be_are_refused(options: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SSLDataModule(image_size=8, **options)
