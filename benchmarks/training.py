"""Images a second of `fit`, of a bare loop in plain PyTorch, and of lightly's example; variants.

`fit` runs from the command line with all its callbacks and loggers. The bare loop takes a step of
its own after each of its steps: same images, augmentation, networks, criterion and optimiser.
Lightly's example trains the same networks with lightly's transform, loss and head, images from
two workers, after it. Start-up, validation and checkpoints do not count.
"""

import copy
import io
import itertools
import logging
import statistics
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from lightning import Callback, LightningModule, Trainer, seed_everything
from measure import alternate, parser, save_some
from PIL import Image
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader, Dataset

from duality_ssl import cli
from duality_ssl.criteria import VICReg
from duality_ssl.data.loader import Batch
from duality_ssl.data.sources import ArrayImages, ImageSource, Split, register_source
from duality_ssl.methods.optimization import parameter_groups
from duality_ssl.networks.backbones import create_backbone
from duality_ssl.networks.projector import create_projector

try:
    from lightly.loss import VICRegLoss
    from lightly.models.modules.heads import VICRegProjectionHead
    from lightly.transforms.vicreg_transform import VICRegTransform
except ImportError:
    VICRegLoss = None

WIDTH = 2048
OPTIMIZER: dict[str, Any] = {"lr": 0.01, "momentum": 0.9}
WEIGHT_DECAY = 1e-4
WARMUP = 3  # steps that do not count


class Case(NamedTuple):
    """What is trained, and for how many steps."""

    backbone: str
    source_size: int
    image_size: int
    batch: int
    precision: str
    steps: int

    @property
    def name(self) -> str:
        """As ``--only`` takes it."""
        return f"{self.image_size}px-{self.precision.partition('-')[0]}"


CASES = {
    case.name: case
    for case in [
        Case("resnet_tiny", 16, 16, 256, "32-true", 50),
        Case("resnet_tiny", 16, 16, 256, "bf16-mixed", 50),
        Case("resnet18_32", 32, 32, 64, "32-true", 10),
        Case("resnet18_32", 32, 32, 64, "bf16-mixed", 15),
        Case("resnet18", 256, 224, 8, "32-true", 15),
        Case("resnet18", 256, 224, 16, "bf16-mixed", 15),
    ]
}


@register_source("noise")
class Noise(ImageSource):
    """Images of noise, of the running case's size; with labels, for the probe."""

    channels, mean, std = 3, (0.5,) * 3, (0.25,) * 3
    class_names = tuple("0123456789")
    image_size = 32
    count = 256

    def load(self, split: Split) -> ArrayImages:
        """As many images as an epoch takes, and a few to validate."""
        count = 64 if split == "val" else self.count
        draw = torch.Generator().manual_seed(0)
        shape = (count, 3, self.image_size, self.image_size)
        images = torch.randint(256, shape, dtype=torch.uint8, generator=draw)
        return ArrayImages(images, torch.arange(count) % 10)


class Terminal(io.StringIO):
    """Shows the progress bar to nobody."""

    def isatty(self) -> bool:
        """Say that somebody is there."""
        return True


def autocast(precision: str, device: str) -> Any:
    """The context that Lightning trains in at this precision."""
    mixed = precision == "bf16-mixed"
    return torch.autocast(device, torch.bfloat16) if mixed else nullcontext()


class BareLoop:
    """The same step with nothing around it.

    Args:
        case: What is trained.
        augment: From a batch of the data module to the views.
        networks: Backbone and projector.
        device: Where they are.
    """

    def __init__(
        self, case: Case, augment: Callable[..., Any], networks: nn.ModuleList, device: str
    ) -> None:
        self.case, self.augment, self.device = case, augment, device
        self.backbone, self.projector = networks
        self.criterion = VICReg()
        groups = parameter_groups(networks, WEIGHT_DECAY)
        self.optimizer = SGD(groups, **OPTIMIZER, fused=True)
        self.data = Noise().load("pretrain")
        self.seeds = itertools.count()
        self.order: list[Tensor] = []

    def __call__(self) -> None:
        """Take one step."""
        if not self.order:
            self.order = list(torch.randperm(len(self.data)).split(self.case.batch))
        rows = self.order.pop()
        images = self.data.images[rows].to(self.device)
        labels = self.data.labels[rows].to(self.device)
        (x1, x2), _ = self.augment(Batch((images,), labels, next(self.seeds)), 0)
        with autocast(self.case.precision, self.device):
            z1, z2 = self.projector(self.backbone(x1)), self.projector(self.backbone(x2))
            loss = self.criterion(z1, z2)["loss"]
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


class Alongside(Callback):
    """Takes a bare step after each step of a fit, and notes the seconds of both."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the networks as the fit has them."""
        networks = nn.ModuleList([pl_module.backbone, pl_module.projector])
        augment = trainer.datamodule.on_after_batch_transfer
        device = pl_module.device.type
        self.bare = BareLoop(self.case, augment, copy.deepcopy(networks), device)
        for _ in range(WARMUP):
            self.bare()

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Start both clocks at the first batch."""
        if trainer.global_step == 0:
            self.since = time.perf_counter()

    def _lap(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        taken, self.since = now - self.since, now
        return taken

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Take the bare step, and note the time of both."""
        taken = {"fit": self._lap()}
        self.bare()
        taken["bare"] = self._lap()
        if trainer.global_step > WARMUP:
            for name, seconds in taken.items():
                self.seconds[name].append(seconds)


def fit(case: Case) -> dict[str, float]:
    """Seconds a step of ``duality-ssl fit``, with every default callback and logger, and bare."""
    alongside = Alongside(case)
    original = cli.Command.instantiate_trainer

    def instantiate(self: Any, **kwargs: Any) -> Trainer:
        trainer = original(self, **kwargs)
        trainer.callbacks.append(alongside)
        return trainer

    options = {
        "model": "VICReg",
        "model.backbone": case.backbone,
        "model.projector": f"{WIDTH}-{WIDTH}-{WIDTH}",
        "model.optimizer": "SGD",
        "model.optimizer.momentum": OPTIMIZER["momentum"],
        "model.base_lr": OPTIMIZER["lr"],
        "model.weight_decay": WEIGHT_DECAY,
        "model.warmup_epochs": 0,
        "data.source": "noise",
        "data.image_size": case.image_size,
        "data.batch_size": case.batch,
        # once each after the warm-up; at their defaults once in 50 steps
        "duality.every_n_steps": max(2, case.steps // 2),
        "guard.every_n_steps": min(50, case.steps),
        "trainer.max_epochs": 1,
        "trainer.precision": case.precision,
        "trainer.devices": 1,
    }
    Noise.image_size, Noise.count = case.source_size, case.batch * case.steps
    terminal = Terminal()
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(cli.Command, "instantiate_trainer", instantiate),
        redirect_stdout(terminal),
        redirect_stderr(terminal),
    ):
        words = [f"--{name}={value}" for name, value in options.items()]
        cli.main(["fit", *words, f"--trainer.default_root_dir={folder}"])
    # the mean: what comes once in many steps counts
    return {name: statistics.mean(taken) for name, taken in alongside.seconds.items()}


class PilImages(Dataset[Any]):
    """The same images as a torchvision data set gives them: PIL, transformed one by one."""

    def __init__(self, count: int, transform: Callable[[Any], Any]) -> None:
        self.data, self.count, self.transform = Noise().load("pretrain"), count, transform

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Any, int]:
        row = index % len(self.data)
        image = Image.fromarray(self.data.images[row].permute(1, 2, 0).numpy())
        return self.transform(image), int(self.data.labels[row])


class LightlyExample(LightningModule):
    """Lightly's ``examples/pytorch_lightning/vicreg.py`` with the case's backbone and widths."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.backbone = create_backbone(case.backbone, 3)
        features = self.backbone.num_features
        self.projection_head = VICRegProjectionHead(features, WIDTH, WIDTH, num_layers=3)
        self.criterion = VICRegLoss()
        self.seconds: list[float] = []

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        """Two views, one loss."""
        x0, x1 = batch[0]
        z0, z1 = (self.projection_head(self.backbone(x)) for x in (x0, x1))
        loss: Tensor = self.criterion(z0, z1)
        return loss

    def configure_optimizers(self) -> SGD:
        """SGD, as theirs."""
        return SGD(self.parameters(), weight_decay=WEIGHT_DECAY, **OPTIMIZER)

    def on_train_batch_end(self, *_: Any) -> None:
        """Read the clock."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter())


def lightly_example(case: Case, steps: int, workers: int) -> float:
    """Seconds a step of lightly's example."""
    model = LightlyExample(case)
    batches = WARMUP + steps + 4 * workers  # more than are trained on: the workers never rest
    images = PilImages(batches * case.batch, VICRegTransform(input_size=case.image_size))
    loader = DataLoader(images, case.batch, shuffle=True, drop_last=True, num_workers=workers)
    terminal = Terminal()
    with (
        tempfile.TemporaryDirectory() as folder,
        redirect_stdout(terminal),
        redirect_stderr(terminal),
    ):
        trainer = Trainer(
            max_steps=WARMUP + steps,
            devices=1,
            precision=case.precision,
            default_root_dir=folder,
        )
        trainer.fit(model, loader)
    return (model.seconds[-1] - model.seconds[WARMUP - 1]) / steps


def compare(case: Case, rounds: int, workers: int) -> dict[str, Any]:
    """Measure one case: one row."""
    taken: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for who, each in fit(case).items():
            taken[who].append(each)
        if VICRegLoss is not None:
            taken["lightly"].append(lightly_example(case, case.steps, workers))
    seconds = {who: statistics.median(times) for who, times in taken.items()}
    return {
        "what": case.name,
        "backbone": case.backbone,
        "batch": case.batch,
        **{f"{who} images/s": case.batch / each for who, each in seconds.items()},
        **{f"times_{who}": each / seconds["fit"] for who, each in seconds.items() if who != "fit"},
        "overhead_seconds": seconds["fit"] - seconds["bare"],
    }


def variants(case: Case, device: str, repeats: int, compiler: str) -> dict[str, Any]:
    """The bare step with channels first and last, and compiled: one row."""
    Noise.image_size, Noise.count = case.image_size, 4 * case.batch
    views = torch.randn(2, case.batch, 3, case.image_size, case.image_size, device=device)
    steps: dict[str, Callable[[], object]] = {}
    for name in ("channels first", "channels last", "compiled"):
        seed_everything(0, verbose=False)
        backbone = create_backbone(case.backbone, 3)
        projector = create_projector(f"{WIDTH}-{WIDTH}-{WIDTH}", backbone.num_features)
        last = name != "channels first"
        backbone.to(memory_format=torch.channels_last if last else torch.contiguous_format)
        networks = nn.ModuleList([backbone, projector]).to(device)
        step = BareLoop(case, lambda *_: (views, None), networks, device)
        if name == "compiled":
            for module in (step.backbone, step.projector, step.criterion):
                module.compile(backend=compiler)
        steps[name] = step
    started = time.perf_counter()
    steps["compiled"]()
    compiled = time.perf_counter() - started
    seconds = alternate(steps, repeats, warmup=1)
    return {
        "what": case.name,
        "backbone": case.backbone,
        "batch": case.batch,
        **{f"{name} images/s": case.batch / each for name, each in seconds.items()},
        "first_compiled_step_seconds": compiled,
    }


def main() -> None:
    """Measure what the command line says."""
    options = parser(__doc__)
    options.add_argument("--only", nargs="+", choices=CASES, default=[*CASES], help="these cases")
    options.add_argument("--rounds", type=int, default=3, help="fits of each case, at least 1")
    options.add_argument(
        "--parts", nargs="+", choices=["training", "variants"], default=["training", "variants"]
    )
    args = options.parse_args()
    if VICRegLoss is None:
        print("lightly is left out: it is not installed (pip install -e '.[bench]')")
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    suffix = "-cuda" if device == "cuda" else ""
    if device == "cpu":
        torch.set_num_threads(2)
    cases = [CASES[name] for name in args.only]
    if args.smoke:
        args.rounds, args.only = 1, args.only[:1]
        cases = [cases[0]._replace(batch=4, steps=WARMUP + 2)]
    if "training" in args.parts:
        for case in cases:  # minutes each: what is measured is kept
            row = compare(case, args.rounds, workers=0 if args.smoke else 2)
            save_some(f"training{suffix}", [row], [case.name], CASES, args.out)
    if "variants" in args.parts:
        repeats, compiler = (1, "eager") if args.smoke else (args.repeats, "inductor")
        rows = [variants(case, device, repeats, compiler) for case in cases]
        save_some(f"variants{suffix}", rows, args.only, CASES, args.out)


if __name__ == "__main__":
    main()
