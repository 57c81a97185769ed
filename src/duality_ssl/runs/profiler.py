"""Where the time of a training step goes, as a profiler that a YAML names."""

import re
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.profilers import Profiler
from torch import nn

PARTS = (
    "data wait",
    "transfer",
    "augment",
    "forward",
    "criterion",
    "backward",
    "optimiser",
    "callbacks",
    "rest",
)
_DEAREST = 5  # callbacks named
# What the Trainer calls the sections of its loop, and the part that each begins; in the order of
# precedence. A section that is not here belongs to the one around it.
_SECTIONS = (
    (re.compile(r"\[Callback\]\w+"), "callbacks"),
    (re.compile(r".*\.train_dataloader_next$"), "data wait"),
    (re.compile(r"\[Strategy\].*\.batch_to_device$"), "transfer"),
    (re.compile(r".*\.on_after_batch_transfer$"), "augment"),
    (re.compile(r"\[Strategy\].*\.training_step$"), "rest"),  # but for the modules hooked below
    (re.compile(r"\[Strategy\].*\.backward$"), "backward"),
    (
        re.compile(
            r".*\.(optimizer_step|optimizer_zero_grad|configure_gradient_clipping|"
            r"lr_scheduler_step)$"
        ),
        "optimiser",
    ),
)
_MODULES = {"backbone": "forward", "projector": "forward", "criterion": "criterion"}


class StepProfiler(Profiler):
    """Shares of the time of training: at the end of a fit in the terminal, and in ``profile.txt``.

    Each moment from the start of training to its end counts for the innermost section that it is
    in, so that the shares add up to 100 %; validation is left out and said apart. Forward is
    backbone and projector, the criterion its own forward; their backward is one. The rest is the
    Trainer's loop and logging.

    On a GPU the host waits for the device at each boundary, or the time would be that of asking:
    a profiled run is slower than one that is not.
    """

    def __init__(self) -> None:
        super().__init__()
        self._reset()

    def _reset(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.callbacks: defaultdict[str, float] = defaultdict(float)
        self.batches = 0
        self.validation = 0.0
        self._sections: list[str] = []
        self._mark: float | None = None
        self._validating = False
        self._hooks: list[Any] = []

    def start(self, action_name: str) -> None:
        """Enter a section; the profile begins when training does."""
        if self._mark is None:
            if not action_name.endswith(".on_train_start"):
                return
            self._reset()
            self._hook_modules()
            self._mark = time.perf_counter()
        self._count()
        self._sections.append(self._part(action_name))

    def stop(self, action_name: str) -> None:
        """Leave a section; the profile ends when training does."""
        if self._mark is None:
            return
        self._count()
        if self._sections:  # none where the profile began inside of this one
            self._sections.pop()
        if action_name == "run_training_batch":
            self.batches += 1
        if action_name.startswith("[Strategy]") and action_name.endswith(".on_train_end"):
            self._mark = None
            for hook in self._hooks:
                hook.remove()

    def _part(self, action: str) -> str:
        around = self._sections[-1] if self._sections else "rest"
        for pattern, part in _SECTIONS:
            if found := pattern.match(action):
                return found[0] if part == "callbacks" else part
        return around

    def _count(self) -> None:
        """Add the time since the last boundary to the section that it was spent in."""
        assert self._mark is not None
        module = self._module
        if module.device.type == "cuda":
            torch.cuda.synchronize(module.device)
        now = time.perf_counter()
        section = self._sections[-1] if self._sections else "rest"
        if self._validating:
            self.validation += now - self._mark
        elif section.startswith("[Callback]"):
            self.seconds["callbacks"] += now - self._mark
            self.callbacks[section.removeprefix("[Callback]")] += now - self._mark
        else:
            self.seconds[section] += now - self._mark
        self._validating = module.trainer.validating
        self._mark = now

    @property
    def _module(self) -> Any:
        return self._lightning_module  # type: ignore[attr-defined]  # given by the Trainer

    def _hook_modules(self) -> None:
        for name, part in _MODULES.items():
            module = getattr(self._module, name, None)
            if isinstance(module, nn.Module):
                self._hooks += [
                    module.register_forward_pre_hook(self._enter(part)),
                    module.register_forward_hook(self._leave, always_call=True),
                ]

    def _enter(self, part: str) -> Callable[..., None]:
        def enter(*_: Any) -> None:
            if self._mark is not None:
                self._count()
                self._sections.append(part)

        return enter

    def _leave(self, *_: Any) -> None:
        if self._mark is not None:
            self._count()
            self._sections.pop()

    def summary(self) -> str:
        """The table; nothing where nothing was trained."""
        if not self.batches:
            return ""
        total = sum(self.seconds.values())
        each = 1e3 * total / self.batches
        on_gpu = self._module.device.type == "cuda"
        waited = ", the host waiting for the GPU at each boundary" if on_gpu else ""
        lines = [f"{total:.1f} s of training, {self.batches:,} batches of {each:.1f} ms{waited}:"]

        def line(name: str, seconds: float) -> str:
            return f"  {name:<26}{seconds:>9.2f} s{100 * seconds / total:>8.1f} %"

        for part in PARTS:
            lines.append(line(part, self.seconds[part]))
            if part == "callbacks":
                dearest = sorted(self.callbacks, key=self.callbacks.__getitem__, reverse=True)
                lines += [line(f"  {x}", self.callbacks[x]) for x in dearest[:_DEAREST]]
        lines.append(f"Validation took another {self.validation:.1f} s.")
        return "\n".join(lines)

    def describe(self) -> None:
        """Print the table on the first process; write it into the run's folder."""
        summary = self.summary()
        if not summary or not self._module.trainer.is_global_zero:
            return
        print(summary, flush=True)
        if self.dirpath is not None and (folder := Path(self.dirpath)).is_dir():
            (folder / "profile.txt").write_text(summary + "\n")
