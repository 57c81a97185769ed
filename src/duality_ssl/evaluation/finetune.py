"""Fine-tuning: the whole network with a new classifier, on all labels or a part of them."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from duality_ssl.data import SSLDataModule
from duality_ssl.data.passes import Passes, Rows
from duality_ssl.data.sampler import draw_subset
from duality_ssl.evaluation.settings import Settings
from duality_ssl.evaluation.supervised import crops, labelled_rows, top1, train

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    "adamw": torch.optim.AdamW,
}


def finetune(network: nn.Module, data: SSLDataModule, settings: Settings) -> dict[str, Any]:
    """Top-1 accuracy of a copy of the backbone, trained with a new linear classifier.

    Crops and flips are those of the first view of pretraining. ``finetune_epochs`` epochs in
    float32, batches of ``batch_size`` images, or all if there are fewer; one learning rate for all
    layers, ``finetune_lr`` for 256 images, falling to 0 along a cosine; no weight decay with
    ``finetune_optimizer`` "sgd" (Nesterov momentum 0.9), that of its default with "adamw". The
    classifier starts at zero. The network after the last epoch is scored on the validation set.

    Args:
        network: Computes features ``(N, F)`` of images, by its ``backbone`` if it has one; left as
            it is.
        data: Data module, set up for a test.
        settings: See above, and ``finetune_fractions``: parts of the labelled training images to
            learn from, in proportion over the classes, the same for every
            network.

    Returns:
        ``finetune_top1`` for all labels (a fraction of 1), ``finetune_percent1_top1`` for one in a
        hundred, and so on.

    Raises:
        ValueError: If there are no labelled images, no such optimizer, or a fraction is above 1.

    Source: Chen et al., *SimCLR*, ICML 2020, section 6 and appendix B.5,
    https://arxiv.org/abs/2002.05709
    """
    if settings.finetune_optimizer not in OPTIMIZERS:
        raise ValueError(
            f"Expected `evaluation.finetune_optimizer` to be {' or '.join(OPTIMIZERS)}, but got "
            f"{settings.finetune_optimizer!r}."
        )
    if not all(0 < fraction <= 1 for fraction in settings.finetune_fractions):
        raise ValueError(
            "Expected `evaluation.finetune_fractions` to be above 0 and at most 1, but got "
            f"{settings.finetune_fractions}."
        )
    device = next(network.parameters()).device
    learn, val = (Passes(data, split, device) for split in ("train", "val"))
    rows, results = labelled_rows(learn), {}
    for fraction in settings.finetune_fractions:
        count = max(2, round(fraction * len(rows)))
        part = draw_subset(learn.labels[rows], count, seed=0).numpy()
        percent = "" if fraction == 1 else f"_percent{100 * fraction:g}"
        with (
            torch.random.fork_rng([device] if device.type == "cuda" else []),  # of dropout
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(device.type, enabled=False),
        ):
            torch.manual_seed(0)
            classifier = _trained(network, learn, rows[part], data, settings)
            accuracy = top1(classifier, val.plain(labelled_rows(val)))
        results[f"finetune{percent}_top1"] = accuracy.item()
    return results


def _trained(
    network: nn.Module, passes: Passes, rows: Rows, data: SSLDataModule, settings: Settings
) -> nn.Module:
    backbone = copy.deepcopy(getattr(network, "backbone", network)).float().requires_grad_()
    example, _ = next(passes.plain(rows[:1]))
    with torch.no_grad():
        width = backbone(example.float()).shape[1]
    layer = nn.utils.skip_init(nn.Linear, width, int(passes.labels.max()) + 1)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    classifier = nn.Sequential(backbone, layer.to(example.device)).train()

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(classifier(images), labels)

    train(
        loss,
        OPTIMIZERS[settings.finetune_optimizer](classifier.parameters(), lr=settings.finetune_lr),
        passes,
        rows,
        crops(data),
        epochs=settings.finetune_epochs,
        batch_size=settings.batch_size,
    )
    return classifier.eval()
