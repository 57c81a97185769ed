"""All views of a training image: the large ones, then the small ones."""

from collections.abc import Sequence

import torch
from torch import Tensor

from duality_ssl.data.augment.pipeline import Augmentation
from duality_ssl.data.augment.view import SmallView, View
from duality_ssl.distributed import process_group


class Views:
    """The augmentations of an image's views, drawn one after the other from one generator.

    Args:
        pair: Distributions of the first and the second view.
        views: Number of large views, drawn as view 1, 2, 1, 2, ...
        small_views: Number of small views.
        small_view: Size of the small views, and their differences from the first view.
        image_size: Side of the large views, in pixels.
        mean: Mean of each channel, for values in [0, 1].
        std: Standard deviation of each channel, for values in [0, 1].

    Raises:
        ValueError: If small views are not smaller than the large ones.
    """

    def __init__(
        self,
        pair: tuple[View, View],
        views: int,
        small_views: int,
        small_view: SmallView,
        image_size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        if small_views and not 0 < small_view.size < image_size:
            raise ValueError(
                f"Expected `data.small_view.size` of 1 to {image_size - 1} pixels, less than the "
                f"large views have, but got {small_view.size}."
            )
        self.large = tuple(pair[number % 2] for number in range(views))
        self.small = (small_view.of(pair[0]),) * small_views
        self.sizes = (image_size,) * views + (small_view.size,) * small_views
        """Side of each view in pixels."""
        self._augmentations = [
            Augmentation(view, size, mean, std)
            for view, size in zip((*self.large, *self.small), self.sizes, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.sizes)

    def of(self, images: Sequence[Tensor], seed: int) -> list[Tensor]:
        """Augment a batch of ``uint8`` images: one tensor, or one a view if cropped already."""
        generator = torch.Generator().manual_seed(seed)
        cropped = len(images) > 1
        crops = images if cropped else [images[0]] * len(self)
        return [
            augment(crop, generator, cropped=cropped, group=process_group())
            for augment, crop in zip(self._augmentations, crops, strict=True)
        ]
