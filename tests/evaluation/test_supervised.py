"""Linear SGD and fine-tuning on the digits."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from duality_ssl import VICReg
from duality_ssl.data import SSLDataModule, View
from duality_ssl.data.passes import Passes
from duality_ssl.evaluation import Settings
from duality_ssl.evaluation.finetune import finetune
from duality_ssl.evaluation.linear_sgd import linear_sgd
from duality_ssl.evaluation.supervised import crops, labelled_rows, top1, train

CPU = torch.device("cpu")


class Network(nn.Module):
    """Random features of the pixels, of scales that differ by orders of magnitude."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.backbone = nn.Sequential(
                nn.Flatten(), nn.Linear(256, 100), nn.BatchNorm1d(100), nn.ReLU(), nn.Dropout(0.1)
            )
        self.register_buffer("scales", 10 ** torch.linspace(-3, 3, 100))
        self.seen = 0
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return self.scales * self.backbone(images)


@pytest.fixture(scope="module")
def data() -> SSLDataModule:
    module = SSLDataModule(view1=View(scale=(0.5, 1.0), flip=0, blur=0), batch_size=64)
    module.setup("test")
    return module


def snapshot(network: nn.Module) -> dict[str, Any]:
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    return weights | {
        "random": torch.get_rng_state(),
        "training": torch.tensor([module.training for module in network.modules()]),
        "gradients": torch.tensor([p.requires_grad for p in network.parameters()]),
    }


@pytest.mark.parametrize(
    ("protocol", "settings", "least"),
    [
        (linear_sgd, Settings(sgd_epochs=8, batch_size=64), 0.85),
        (finetune, Settings(finetune_epochs=4, batch_size=64), 0.85),
        (finetune, Settings(finetune_epochs=4, finetune_optimizer="adamw", finetune_lr=0.01), 0.8),
    ],
    ids=["linear_sgd", "finetune", "finetune by AdamW"],
)
def test_digits_are_learnt_and_the_network_left_as_it_was(
    data: SSLDataModule, protocol: Any, settings: Settings, least: float
) -> None:
    network = Network()
    before = snapshot(network)
    with torch.inference_mode(False), torch.no_grad():  # as at the end of a test
        found = protocol(network, data, settings)
        again = protocol(network, data, settings)
    assert found == again
    assert found[f"{protocol.__name__}_top1"] > least
    for name, value in snapshot(network).items():
        assert torch.equal(value, before[name]), name


def test_learning_rates_share_one_forward_pass(data: SSLDataModule) -> None:
    seen = []
    for rates in ((0.1,), (0.001, 0.01, 0.1)):
        network = Network()
        linear_sgd(network, data, Settings(sgd_epochs=1, sgd_learning_rates=rates))
        seen.append(network.seen)
    assert seen[0] == seen[1]


@pytest.mark.parametrize("rates", [(1e-9, 0.3), (0.3, 1e-9)], ids=["last", "first"])
def test_the_learning_rate_is_that_of_the_best_layer(
    data: SSLDataModule, rates: tuple[float, float]
) -> None:
    found = linear_sgd(Network(), data, Settings(sgd_epochs=2, sgd_learning_rates=rates))
    alone = linear_sgd(Network(), data, Settings(sgd_epochs=2, sgd_learning_rates=(0.3,)))
    assert found == alone
    assert found["linear_sgd_lr"] == 0.3


def test_no_image_is_both_trained_on_and_held_out(
    data: SSLDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, scored = set(), []
    shuffled, plain = Passes.shuffled, Passes.plain

    def spy_shuffled(own: Passes, rows: np.ndarray, *args: int) -> list[np.ndarray]:
        trained.update(rows)
        return shuffled(own, rows, *args)

    def spy_plain(own: Passes, rows: np.ndarray, *args: int) -> Iterator[Any]:
        scored.append({*rows})
        return plain(own, rows, *args)

    monkeypatch.setattr(Passes, "shuffled", spy_shuffled)
    monkeypatch.setattr(Passes, "plain", spy_plain)
    linear_sgd(Network(), data, Settings(sgd_epochs=1))
    _, held_out, val = scored  # the first is an example, for its shape
    assert not trained & held_out
    assert trained | held_out == {*range(1437)}
    assert (len(held_out), len(val)) == (144, 360)


def test_fractions_of_the_labels_are_fine_tuned_on_in_turn(
    data: SSLDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []

    def spy(own: Passes, rows: np.ndarray, *args: int) -> list[np.ndarray]:
        taken.append(rows)
        return []

    monkeypatch.setattr(Passes, "shuffled", spy)
    settings = Settings(finetune_epochs=1, finetune_fractions=(0.01, 0.125, 1))
    found = finetune(Network(), data, settings)
    assert [*found] == ["finetune_percent1_top1", "finetune_percent12.5_top1", "finetune_top1"]
    assert [len(rows) for rows in taken] == [14, 180, 1437]
    labels = Passes(data, "train", CPU).labels[taken[1]]
    assert labels.bincount().tolist() == pytest.approx([18] * 10, abs=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"finetune_optimizer": "adam"}, "to be sgd or adamw, but got 'adam'"),
        ({"finetune_fractions": (1.0, 50)}, "above 0 and at most 1, but got"),
    ],
    ids=["optimizer", "fraction"],
)
def test_fine_tuning_refuses(data: SSLDataModule, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        finetune(Network(), data, Settings(**settings))


def test_learning_rates_follow_a_cosine_from_what_the_batch_allows(data: SSLDataModule) -> None:
    weight = nn.Parameter(torch.zeros(()))
    optimizer, rates = torch.optim.SGD([weight], lr=0.8), []

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        rates.append(optimizer.param_groups[0]["lr"])
        assert (len(images), len(labels)) == (64, 64)
        return weight

    own = Passes(data, "train", CPU)
    train(loss, optimizer, own, np.arange(130), View(), epochs=3, batch_size=64)
    expected = [0.8 * 64 / 256 * (1 + np.cos(np.pi * step / 6)) / 2 for step in range(6)]
    assert rates == pytest.approx(expected)


def test_a_set_smaller_than_a_batch_is_one_batch(data: SSLDataModule) -> None:
    weight, sizes = nn.Parameter(torch.zeros(())), []

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        sizes.append(len(images))
        return weight

    own = Passes(data, "train", CPU)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    train(loss, optimizer, own, np.arange(5), View(), epochs=2, batch_size=64)
    assert sizes == [5, 5]


def test_crops_keep_the_geometry_of_the_view_alone() -> None:
    view = View(scale=(0.4, 0.9), interpolation="bicubic", flip=0.1, solarize=0.2)
    data = SSLDataModule(view1=view)
    kept = crops(data)
    assert (kept.scale, kept.flip, kept.interpolation) == ((0.4, 0.9), 0.1, "bilinear")
    assert (kept.jitter, kept.gray, kept.blur, kept.solarize) == (0, 0, 0, 0)


def test_top1_is_that_of_each_layer() -> None:
    labels = torch.tensor([0, 1, 1])
    scores = torch.eye(2)[torch.tensor([[0, 1, 1], [0, 0, 1], [1, 0, 0]])]
    batches = [(scores[:, :2], labels[:2]), (scores[:, 2:], labels[2:])]
    assert top1(lambda x: x, batches).tolist() == pytest.approx([1, 2 / 3, 0])


def test_images_without_labels_are_left_out_and_none_refused() -> None:
    known = SimpleNamespace(labels=torch.tensor([-1, 3, -1, 0]))
    assert labelled_rows(known).tolist() == [1, 3]
    with pytest.raises(ValueError, match="labelled images for linear_sgd and finetune, but got 1"):
        labelled_rows(SimpleNamespace(labels=torch.tensor([-1, 3, -1])))


@pytest.mark.slow
def test_a_convolutional_network_is_trained_as_a_whole(data: SSLDataModule) -> None:
    """Fine-tuned, an untrained network learns more than a linear layer on it."""
    torch.manual_seed(0)
    network = VICReg(backbone="resnet_tiny", projector="16", in_channels=1).eval()
    settings = Settings(sgd_epochs=8, finetune_epochs=8, batch_size=64)
    linear = linear_sgd(network, data, settings)["linear_sgd_top1"]
    tuned = finetune(network, data, settings)["finetune_top1"]
    assert tuned > max(linear, 0.9)
