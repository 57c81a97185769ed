import io
import re
import sys
from pathlib import Path

import pytest
import torch
from helpers.callback_stubs import StubData, StubModule, trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from duality_ssl.callbacks import OnlineLinearProbe, RunProgress, ViewGrid
from duality_ssl.callbacks.progress import Stopwatch
from duality_ssl.callbacks.views import view_grid


def test_a_pipe_gets_one_line_an_epoch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trainer(tmp_path, RunProgress(), OnlineLinearProbe(), epochs=3, enable_progress_bar=True)
    run.fit(StubModule(), datamodule=StubData())
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    assert len(lines) == 4
    for epoch, line in enumerate(lines[:3], start=1):
        pattern = rf"epoch {epoch}/3  loss [\d.e-]+  probe top-1 \d+\.\d%  [\d,]+ images/s"
        assert re.fullmatch(pattern, line)
    pattern = r"Trained on 384 images in [\d.]+ s: [\d,]+ images/s, \d+% of the time waiting .*"
    assert re.fullmatch(pattern, lines[3])


def test_the_line_has_the_mean_loss_of_the_epoch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module, losses = StubModule(), []
    step = module.training_step
    module.training_step = lambda *a: losses.append(out := step(*a)) or out
    run = trainer(tmp_path, RunProgress(), epochs=1, enable_progress_bar=True)
    run.fit(module, datamodule=StubData())
    mean = torch.stack([out["loss"].detach() for out in losses]).mean().item()
    said = re.search(r"loss ([\d.e-]+)", capsys.readouterr().out)
    assert float(said[1]) == pytest.approx(mean, rel=1e-3)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    run = trainer(tmp_path, RunProgress(), OnlineLinearProbe(), enable_progress_bar=True)
    run.fit(StubModule(), datamodule=StubData())
    shown = screen.getvalue()
    for part in (
        "epoch 1/2",
        "epoch 2/2",
        "4/4",
        "loss=",
        "probe top-1=",
        "images/s=",
        "Trained on 256 images",
    ):
        assert part in shown
    assert "epoch 1/2  loss" not in shown  # the pipe's line


def test_stopwatch_counts_training_and_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("duality_ssl.callbacks.progress.time.perf_counter", lambda: now[0])
    watch = Stopwatch()
    for wait, work in ((3, 1), (1, 1)):
        now[0] += wait
        watch.batch_starts()
        now[0] += work
        watch.batch_ends(images=12)
    now[0] += 100  # validation
    watch.start()
    watch.batch_ends()
    assert (watch.seconds, watch.waited, watch.images) == (6, 4, 24)


def test_without_a_bar_the_run_still_has_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trainer(tmp_path, RunProgress(refresh_rate=0), epochs=2, enable_progress_bar=True)
    run.fit(StubModule(), datamodule=StubData())
    (line,) = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"Trained on 256 images in .* images/s, \d+% of the time waiting .*", line)


def test_grid_has_the_views_side_by_side() -> None:
    first = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 2, 2) / 10
    views = [(first - 0.5) / 0.25, (first + 0.4 - 0.5) / 0.25]
    grid = view_grid(views, [0.5] * 3, [0.25] * 3)
    height, width = 2 + 2, 2 + 2 * 2  # padding, and two views of 2 x 2
    assert grid.shape == (3, 2 * height + 2, 4 * width + 2)
    assert grid.dtype == torch.uint8
    tiles = grid[:, 2:, 2:].view(3, 2, height, 4, width).permute(1, 3, 0, 2, 4).flatten(0, 1)
    for i in range(6):
        left, right = tiles[i, :, :2, :2].unique(), tiles[i, :, :2, 2:4].unique()
        assert left.item() == pytest.approx(25.5 * i, abs=1)
        assert right.item() == pytest.approx(25.5 * i + 102, abs=1)
        assert (tiles[i, :, 2:] == 255).all()
        assert (tiles[i, :, :, 4:] == 255).all()
    assert (tiles[6:] == 255).all()


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_grid_without_statistics_is_stretched(channels: int) -> None:
    images = torch.linspace(-3, 7, 2 * channels * 16).view(2, channels, 4, 4)
    grid = view_grid([images, images])
    assert grid.shape[0] == 3
    assert (grid[:, 2:-2, 2:10].min(), grid[:, 2:-2, 2:20].max()) == (0, 255)


@pytest.mark.parametrize(("every", "steps"), [(0, [1]), (2, [1, 9])], ids=["once", "every_second"])
def test_tensorboard_gets_the_grid(tmp_path: Path, every: int, steps: list[int]) -> None:
    board = TensorBoardLogger(tmp_path, name="", version="")
    run = trainer(tmp_path, ViewGrid(num_images=5, every_n_epochs=every), epochs=4, logger=board)
    run.fit(StubModule(), datamodule=StubData())
    board.experiment.flush()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    images = events.Images("views")
    assert [image.step for image in images] == steps
    assert (images[0].height, images[0].width) == (2 * 6 + 2, 4 * 10 + 2)


def test_without_tensorboard_there_is_no_grid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("duality_ssl.callbacks.views.view_grid", None)  # would raise if called
    trainer(tmp_path, ViewGrid(), epochs=1).fit(StubModule(), datamodule=StubData())
    csv = trainer(tmp_path, ViewGrid(), epochs=1, logger=CSVLogger(tmp_path))
    csv.fit(StubModule(), datamodule=StubData())
