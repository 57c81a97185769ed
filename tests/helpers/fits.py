"""A short, quiet Trainer, and a fit with it."""

from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer


def trainer(folder: Path | None, *callbacks: Callback, epochs: int = 2, **settings: Any) -> Trainer:
    """Train on one CPU without loggers, checkpoints and bars, unless a setting says otherwise."""
    quiet = {
        "max_epochs": epochs,
        "accelerator": "cpu",
        "devices": 1,
        "default_root_dir": folder,
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "num_sanity_val_steps": 1,
        "use_distributed_sampler": False,
    }
    return Trainer(callbacks=list(callbacks), **(quiet | settings))


def fit(
    folder: Path | None,
    module: LightningModule,
    data: Any,
    *callbacks: Callback,
    ckpt_path: Path | str | None = None,
    **settings: Any,
) -> Trainer:
    """Fit a module on a data module, or on a training and a validation loader."""
    run = trainer(folder, *callbacks, **settings)
    loaders = data if isinstance(data, tuple) else (data,)
    run.fit(module, *loaders, ckpt_path=ckpt_path)
    return run
