"""Label-free measures of augmented views, which need the network."""

import math
from collections.abc import Callable
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from duality_ssl.data import SSLDataModule
from duality_ssl.data.passes import Passes
from duality_ssl.evaluation.geometry import MAX_SAMPLES
from duality_ssl.evaluation.label_free import finite
from duality_ssl.evaluation.settings import Settings
from duality_ssl.functional import alignment, lidar, uniformity

VIEWS = 10
"""Augmented views of each image in LiDAR."""
_FEWEST = 100  # images in LiDAR, or four times the dimensions if that is more
_BATCH = 256


def views(network: nn.Module, data: SSLDataModule, settings: Settings) -> dict[str, Any]:
    """LiDAR, alignment and uniformity of augmented training images.

    The views are those of pretraining, five times the first and the second, drawn alike for every
    network. LiDAR takes the larger of 100 and 4 D images, or all if there are fewer, and 10 views;
    alignment and uniformity (the mean of that of either view) the first two views of at most 2,000.

    Returns:
        ``lidar``, ``alignment`` and ``uniformity`` of the embeddings; of the features with
        ``_features`` after the name.
    """
    both = view_outputs(network, data)
    results: dict[str, Any] = {}
    for name, z in both.items():
        first, second = z[:MAX_SAMPLES, 0], z[:MAX_SAMPLES, 1]
        scores = {
            "lidar": lidar(z[: images_of_lidar(z.shape[2])]),
            "alignment": alignment(first, second),
            "uniformity": (uniformity(first) + uniformity(second)) / 2,
        }
        results |= {f"{key}{name}": value for key, value in finite(scores).items()}
    return results


def images_of_lidar(dimensions: int) -> int:
    """Images that LiDAR needs for so many dimensions."""
    return max(_FEWEST, 4 * dimensions)


@torch.no_grad()
def view_outputs(network: nn.Module, data: SSLDataModule) -> dict[str, Tensor]:
    """Features, under ``"_features"``, and embeddings, under ``""``, of shape ``(n, 10, D)``.

    They are float32, on the host: as many images as LiDAR needs, drawn at random. A network without
    a ``projector`` has no embeddings.
    """
    weight = next(network.parameters())
    passes = Passes(data, "train", weight.device)
    heads: dict[str, Callable[[Tensor], Tensor]] = {"_features": nn.Identity()}
    if (projector := getattr(network, "projector", None)) is not None:
        heads[""] = projector
    order = passes.shuffled(np.arange(len(passes.labels)), len(passes.labels), epoch=0)[0]
    sample, _ = next(passes.plain(order[:2]))
    features = network(sample.to(weight.dtype))
    widths = [head(features).shape[1] for head in heads.values()]
    order = order[: images_of_lidar(max(widths))]
    batches = np.array_split(order, math.ceil(len(order) / _BATCH))
    found: dict[str, list[Tensor]] = {name: [] for name in heads}
    drawn = [*islice(cycle(data.views), VIEWS)]
    for images, _ in passes.views(batches, drawn):
        h = [network(view.to(weight.dtype)) for view in images]
        for name, head in heads.items():
            found[name].append(torch.stack([head(each) for each in h], dim=1).float().cpu())
    return {name: torch.cat(each) for name, each in found.items()}
