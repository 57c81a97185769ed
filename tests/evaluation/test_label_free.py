"""What the label-free protocols write of features and embeddings."""

import json

import pytest
import torch
from torch import Tensor, nn

from duality_ssl.data import SSLDataModule
from duality_ssl.evaluation.label_free import evenly_spaced, geometry, spectrum
from duality_ssl.evaluation.settings import DEFAULTS
from duality_ssl.evaluation.views import VIEWS, view_outputs, views
from duality_ssl.functional import alignment, alpha_req, lidar, singular_values, uniformity


def random(n: int, d: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("d", [7, 300], ids=["few dimensions", "more than the entries"])
def test_spectrum_has_the_largest_values_and_the_decay(d: int) -> None:
    z = random(200, d)
    found = spectrum(z, DEFAULTS)
    values = singular_values(z)
    expected = (values / values[0])[:128].tolist()
    assert found["arrays"]["spectrum"] == pytest.approx(expected, rel=5e-5)
    assert found["alpha_req"] == alpha_req(z).item()


def test_what_is_not_defined_is_left_out() -> None:
    """JSON has no NaN."""
    constant = torch.ones(6, 3)
    found = spectrum(constant, DEFAULTS) | geometry(constant, DEFAULTS)
    json.dumps(found, allow_nan=False)
    assert "alpha_req" not in found
    assert found["cosine_mean"] == pytest.approx(1)
    assert geometry(constant[:1], DEFAULTS) == {}
    assert spectrum(torch.zeros(6, 3), DEFAULTS)["arrays"]["spectrum"] == [0, 0, 0]


def test_histograms_have_edges_and_short_numbers() -> None:
    arrays = geometry(random(50, 8), DEFAULTS)["arrays"]
    for histogram in (arrays["gram_histogram"], arrays["covariance_histogram"]):
        assert (len(histogram["edges"]), len(histogram["density"])) == (65, 64)
        assert (histogram["edges"][0], histogram["edges"][-1]) == (-1, 1)
        assert sum(histogram["density"]) / 32 == pytest.approx(1, abs=1e-4)
        assert all(x == float(f"{x:.5g}") for x in histogram["density"])


def test_a_large_set_is_thinned_out_evenly() -> None:
    """Sorted by class, as sets are: the first rows are not the set."""
    z = torch.arange(10_000.0).unsqueeze(1)
    assert evenly_spaced(z, 10)[:, 0].tolist() == [round(i * 9999 / 9) for i in range(10)]
    assert evenly_spaced(z, 20_000) is z
    rows = torch.cat([torch.ones(4000, 3), random(4000, 3)])
    assert geometry(rows, DEFAULTS)["cosine_mean"] < 0.9


class Pixels(nn.Module):
    """Features are the mean and the first pixels of an image, embeddings half of them."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.seen = 0

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return self.scale * images.flatten(1)[:, 8:56]

    @staticmethod
    def projector(features: Tensor) -> Tensor:
        return features[:, :20]


@pytest.fixture
def data() -> SSLDataModule:
    module = SSLDataModule(batch_size=64)
    module.setup("test")
    return module


def test_views_are_measured_on_both_representations(data: SSLDataModule) -> None:
    network = Pixels()
    found = views(network, data, DEFAULTS)
    both = view_outputs(network, data)
    assert {name: tuple(z.shape) for name, z in both.items()} == {
        "": (192, VIEWS, 20),
        "_features": (192, VIEWS, 48),
    }
    z, h = both[""], both["_features"]
    assert found == {
        "lidar": lidar(z[:100]).item(),
        "lidar_features": lidar(h).item(),
        "alignment": alignment(z[:, 0], z[:, 1]).item(),
        "alignment_features": alignment(h[:, 0], h[:, 1]).item(),
        "uniformity": ((uniformity(z[:, 0]) + uniformity(z[:, 1])) / 2).item(),
        "uniformity_features": ((uniformity(h[:, 0]) + uniformity(h[:, 1])) / 2).item(),
    }
    assert 1 < found["lidar"] < 20


def test_views_are_drawn_alike_for_every_network_and_seed(data: SSLDataModule) -> None:
    other = SSLDataModule(batch_size=100, seed=3)
    other.setup("test")
    assert views(Pixels(), data, DEFAULTS) == views(Pixels(), other, DEFAULTS)


def test_a_network_without_projector_has_features_alone(data: SSLDataModule) -> None:
    found = views(nn.Sequential(nn.Flatten(), nn.Linear(256, 6)), data, DEFAULTS)
    assert {*found} == {"lidar_features", "alignment_features", "uniformity_features"}
