"""The estimate of a fit's time: what it says, and that it leaves the fit as it is."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from helpers.fits import fit

from duality_ssl.callbacks import duration
from duality_ssl.callbacks.duration import DurationEstimate, spell
from duality_ssl.data import SSLDataModule
from duality_ssl.methods import BYOL, JointEmbedding, VICReg

SMALL: dict[str, Any] = {"backbone": "resnet_tiny", "projector": "8-8", "in_channels": 1}


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "about 1 s"),
        (89, "about 89 s"),
        (91, "about 2 min"),
        (720, "about 12 min"),
        (5399, "about 90 min"),
        (5401, "about 1.5 h"),
    ],
)
def test_spelling(seconds: float, words: str) -> None:
    assert spell(seconds) == words


@pytest.mark.parametrize(
    ("workers", "every", "seconds"),
    # 10 epochs left of 4 steps; 6 batches of validation, with 1 s to load and 6 s for a step
    [(0, 1, 10 * (4 * 7 + 6 * 2)), (0, 3, 10 * (4 * 7 + 2 * 2)), (8, 1, 10 * (4 * 6 + 6 * 1))],
    ids=["no workers", "validated every third epoch", "workers"],
)
def test_sum(workers: int, every: int, seconds: float, caplog: pytest.LogCaptureFixture) -> None:
    trainer: Any = SimpleNamespace(
        max_epochs=12,
        current_epoch=2,
        max_steps=-1,
        world_size=1,
        num_training_batches=4,
        num_val_batches=[2, 4],
        check_val_every_n_epoch=every,
        datamodule=SimpleNamespace(num_workers=workers),
    )
    module: Any = torch.nn.Module()
    module.device = torch.device("cpu")
    with (
        caplog.at_level(logging.INFO),
        patch.object(duration, "measure", return_value=(1.0, 6.0, 2)),
    ):
        DurationEstimate().on_train_start(trainer, module)
    assert f"The fit takes {spell(seconds)}" in caplog.text


def weights_after(
    tmp_path: Path, method: type[JointEmbedding], *callbacks: DurationEstimate
) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    module = method(**SMALL, warmup_epochs=0)
    data = SSLDataModule("digits", batch_size=16)
    fit(tmp_path, module, data, *callbacks, epochs=1, limit_train_batches=2, limit_val_batches=1)
    return {**module.state_dict(), "next": torch.rand(3)}


@pytest.mark.parametrize("method", [VICReg, BYOL])
def test_fit_stays_as_it_is(
    method: type[JointEmbedding], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = weights_after(tmp_path, method)
    with caplog.at_level(logging.INFO):
        found = weights_after(tmp_path, method, DurationEstimate())
    assert "The fit takes about " in caplog.text
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "settings",
    [{"max_steps": 1}, {"max_epochs": -1, "max_steps": -1}, {"world_size": 2}],
    ids=["steps", "endless", "processes"],
)
def test_what_is_not_estimated(settings: dict[str, int], caplog: pytest.LogCaptureFixture) -> None:
    usual = {"max_epochs": 2, "max_steps": -1, "world_size": 1}
    trainer: Any = SimpleNamespace(
        **usual | settings, current_epoch=0, num_training_batches=4, num_val_batches=[]
    )
    with caplog.at_level(logging.INFO), patch.object(duration, "measure") as measure:
        DurationEstimate().on_train_start(trainer, None)  # type: ignore[arg-type]
    measure.assert_not_called()
    assert "The fit takes" not in caplog.text
