"""The ImageNet linear protocol: SGD on a linear layer, on augmented crops."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from duality_ssl.data import SSLDataModule
from duality_ssl.data.passes import Passes
from duality_ssl.data.sampler import draw_subset
from duality_ssl.evaluation.settings import Settings
from duality_ssl.evaluation.supervised import crops, labelled_rows, top1, train

_HELD_OUT = 0.1  # of the training set, to choose the learning rate on


def linear_sgd(network: nn.Module, data: SSLDataModule, settings: Settings) -> dict[str, Any]:
    """Top-1 accuracy of a linear layer, trained by SGD on frozen features of augmented crops.

    Crops and flips are those of the first view of pretraining. One layer a learning rate is
    trained, all of them on one forward pass of the network: ``sgd_epochs`` epochs, batches of
    ``batch_size`` images, momentum 0.9, no weight decay, ``sgd_learning_rates`` for 256 images,
    falling to 0 along a cosine. Features are standardized by a batch norm without weights, so that
    the same learning rates suit every method. A tenth of the training set, in proportion over its
    classes, is held out; the layer that is best on it after the last epoch is scored on the
    validation set.

    Args:
        network: Computes features ``(N, F)`` of images, in eval mode; left as it is.
        data: Data module, set up for a test.
        settings: See above.

    Returns:
        ``linear_sgd_top1``, a fraction, and ``linear_sgd_lr``, the learning rate chosen.

    Raises:
        ValueError: If there are no labelled images.

    Source: Zhang et al., *Colorful image colorization*, ECCV 2016, and the linear evaluation of
    SimCLR and VICReg; the batch norm: He et al., CVPR 2022, appendix A.1,
    https://arxiv.org/abs/2111.06377
    """
    weight = next(network.parameters())
    learn, val = (Passes(data, split, weight.device) for split in ("train", "val"))
    rows = labelled_rows(learn)
    count = max(1, round(_HELD_OUT * len(rows)))
    held_out = draw_subset(learn.labels[rows], count, seed=0).numpy()

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        h: Tensor = network(images.to(weight.dtype))
        return h.float()

    with torch.inference_mode(False), torch.enable_grad():
        example, _ = next(learn.plain(rows[:1]))
        heads = _Heads(
            features(example).shape[1], int(learn.labels.max()) + 1, settings.sgd_learning_rates
        ).to(weight.device)

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            logits = heads(features(images))
            return torch.stack([cross_entropy(each, labels) for each in logits]).sum()

        train(
            loss,
            torch.optim.SGD(heads.groups(), momentum=0.9),
            learn,
            np.delete(rows, held_out),
            crops(data),
            epochs=settings.sgd_epochs,
            batch_size=settings.batch_size,
        )
        heads.eval()
        chosen = top1(lambda x: heads(features(x)), learn.plain(rows[held_out])).argmax()
        accuracy = top1(lambda x: heads(features(x))[chosen], val.plain(labelled_rows(val)))
    return {
        "linear_sgd_top1": accuracy.item(),
        "linear_sgd_lr": float(settings.sgd_learning_rates[int(chosen)]),
    }


class _Heads(nn.Module):
    """A linear layer a learning rate, on standardized features; weights start at zero."""

    def __init__(self, width: int, classes: int, learning_rates: Sequence[float]) -> None:
        super().__init__()
        self.learning_rates = learning_rates
        self.norm = nn.BatchNorm1d(width, affine=False)
        # without random numbers: a protocol must not change the draws of another
        self.layers = nn.ModuleList(
            nn.utils.skip_init(nn.Linear, width, classes) for _ in learning_rates
        )
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def groups(self) -> list[dict[str, Any]]:
        """Parameters of each layer with its learning rate."""
        pairs = zip(self.layers, self.learning_rates, strict=True)
        return [{"params": list(layer.parameters()), "lr": rate} for layer, rate in pairs]

    def forward(self, features: Tensor) -> Tensor:
        """Compute logits of shape ``(layers, N, C)``, in float32."""
        with torch.autocast(features.device.type, enabled=False):
            normalized = self.norm(features)
            return torch.stack([layer(normalized) for layer in self.layers])
