"""Published values, and what the shipped configs come to on the command line, in one table.

A row that fails is a recipe that trains otherwise than it did: change it here only on purpose. The
defaults of the criteria that no paper gives stand in ``test_criteria.py``.
"""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from duality_ssl.cli import main
from duality_ssl.data import ViewChanges, available_sources, create_source
from duality_ssl.data.augment.color import GRAY_WEIGHTS

CONFIGS = Path(__file__).parents[1] / "configs"

LARS = {
    "class_path": "duality_ssl.optim.LARS",
    # VICReg's released code, main_vicreg.py; weight decay and rate are the method's
    "init_args": {"momentum": 0.9, "trust_coefficient": 0.001, "nesterov": False, "eps": 1e-8}
    | {"weight_decay": 0.0, "lr": 0.001},
}
NO_CHANGE = dict.fromkeys(field.name for field in fields(ViewChanges))
BYOL_COLOURS = {  # BYOL, table 6 of its appendix; VICReg's and Barlow Twins' code has the same
    "jitter": 0.8,
    **{"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1},
    "gray": 0.2,
}
CROP_AND_BLUR = {  # SimCLR, appendix A; BYOL, appendix B
    "scale": [0.08, 1.0],
    "ratio": [3 / 4, 4 / 3],
    "interpolation": "bilinear",
    "flip": 0.5,
    "sigma": [0.1, 2.0],
}
ASYMMETRIC = {  # BYOL, table 6; VICReg's code crops bicubic
    "data.view1": {
        **{**CROP_AND_BLUR, "interpolation": "bicubic"},
        **BYOL_COLOURS,
        **{"blur": 1.0, "solarize": 0.0},
    },
    "data.view2": {**NO_CHANGE, "blur": 0.1, "solarize": 0.2},
}
IMAGENET = {  # Garrido et al., section 5 and supplement: 100 epochs, batch 2048, BYOL's views
    "trainer.max_epochs": 100,
    "trainer.devices": 8,
    "trainer.sync_batchnorm": True,
    "data.batch_size": 256,
    "data.image_size": 224,
    **ASYMMETRIC,
    "model.init_args.backbone": "resnet50",
    "model.init_args.projector": "8192-8192-d",
    "model.init_args.embedding_dim": 8192,
    "model.init_args.optimizer": LARS,
    "model.init_args.weight_decay": 1e-6,
    "model.init_args.warmup_epochs": 10,
    "model.init_args.final_lr_fraction": 0.001,  # VICReg's released code: the cosine's floor
    "model.init_args.joint_forward": False,
}
SMALL_IMAGES = {  # lightly's benchmark of CIFAR-10: SGD, 0.06 a batch of 128, weight decay 5e-4
    "data.view1": {
        **{**CROP_AND_BLUR, "scale": [0.2, 1.0]},  # solo-learn's VICReg
        **BYOL_COLOURS,
        **{"blur": 0, "solarize": 0},
    },
    "model.init_args.backbone": "resnet18_32",
    "model.init_args.optimizer.class_path": "torch.optim.SGD",
    "model.init_args.optimizer.init_args.momentum": 0.9,
    "model.init_args.base_lr": 0.12,
    "model.init_args.weight_decay": 5e-4,
    "trainer.max_epochs": 200,
}
GREY_IMAGES = {
    "data.view2": NO_CHANGE,
    "model.init_args.backbone": "resnet_tiny",
    "model.init_args.projector": "512-512-512",
    "model.init_args.optimizer.class_path": "torch.optim.AdamW",
    "model.init_args.optimizer.init_args.betas": [0.9, 0.999],
    "model.init_args.base_lr": 0.002,
    "model.init_args.weight_decay": 1e-4,
    "model.init_args.warmup_epochs": 2,
}
GPUS = {"trainer.accelerator": "gpu", "trainer.precision": "bf16-mixed"}

RESOLVED: dict[str, dict[str, Any]] = {
    "methods/simclr.yaml": {
        "model.init_args.temperature": 0.15,  # Garrido et al., the paper's tuning, section 5
        "model.init_args.similarity": "cosine",
        "model.init_args.normalization": "embeddings",
    },
    "methods/simclr_sq.yaml": {"model.init_args.similarity": "squared"},
    "methods/simclr_abs.yaml": {"model.init_args.similarity": "absolute"},
    "methods/simclr_a.yaml": {"model.init_args.normalization": "centered"},
    "methods/simclr_b.yaml": {"model.init_args.normalization": "standardized"},
    "methods/dcl.yaml": {"model.init_args.temperature": 0.1},  # Yeh et al., section 4
    "methods/dcl_sq.yaml": {"model.init_args.similarity": "squared"},
    "methods/dcl_abs.yaml": {"model.init_args.similarity": "absolute"},
    "methods/vicreg.yaml": {  # Bardes et al., section 4.2
        "model.init_args.invariance": 25,
        "model.init_args.variance": 25,
        "model.init_args.covariance": 1,
    },
    "methods/barlow_twins.yaml": {"model.init_args.redundancy": 0.005},  # Zbontar et al., sec. 2.2
    "methods/tcr.yaml": {"model.init_args.distortion": 0.2},  # Tong et al., section 3
    "methods/cplearn.yaml": {  # Sansone et al.'s YAML for CIFAR-10
        "model.init_args.num_codes": 16384,
        "model.init_args.invariance": 1,
    },
    "methods/swav.yaml": {  # Caron et al., main_swav.py
        "model.init_args.num_prototypes": 3000,
        "model.init_args.temperature": 0.1,
        "model.init_args.epsilon": 0.05,
        "model.init_args.iterations": 3,
        "model.init_args.frozen_steps": 313,
    },
    "methods/dino.yaml": {  # Caron et al., main_dino.py; the temperatures of ResNet-50
        "model.init_args.temperature": 0.1,
        "model.init_args.teacher_temperature": 0.04,
        "model.init_args.center_momentum": 0.9,
        "model.init_args.teacher_momentum": 0.996,
        "model.init_args.frozen_epochs": 1,
    },
    "experiments/imagenet_vicreg.yaml": {
        **IMAGENET,
        "model.class_path": "duality_ssl.VICReg",
        "model.init_args.base_lr": 0.3,  # Garrido et al., supplement
        "model.init_args.invariance": 25,
        "model.init_args.variance": 25,
        "model.init_args.covariance": 1,
    },
    "experiments/imagenet_simclr.yaml": {
        **IMAGENET,
        "model.class_path": "duality_ssl.SimCLR",
        "model.init_args.base_lr": 0.5,  # Garrido et al., the tuned SimCLR
        "model.init_args.temperature": 0.15,
        "model.init_args.normalization": "embeddings",
    },
    "data/imagenet.yaml": {  # but for the views, defaults
        **ASYMMETRIC,
        "data.batch_size": 256,
        "seed_everything": 0,
        "model.init_args.backbone": "resnet50",
        "model.init_args.projector": "8192-8192-8192",
        "model.init_args.embedding_dim": None,
        "model.init_args.optimizer": LARS,
        "model.init_args.base_lr": 0.3,
        "model.init_args.weight_decay": 1e-6,
        "model.init_args.warmup_epochs": 10,
        "model.init_args.final_lr_fraction": 0.001,
        "model.init_args.channels_last": True,
        "probe.representations": ["backbone"],
        "probe.learning_rate": 0.3,
        "probe.weight_decay": 1e-4,
        "knn.k": 20,
        "knn.temperature": 0.07,  # Wu et al., section 3.4
        "knn.bank_size": 16_384,
        "rankme.max_samples": 25_600,  # Garrido et al., RankMe
        "evaluation": {
            "protocols": ["linear", "knn", "few_label", "ranks", "spectrum", "geometry", "views"],
            **{"sets": [], "cache": True, "teacher": False, "batch_size": 256},
            **{"k": 5, "temperature": 0.07, "max_linear_samples": 50_000},
            **{"labels_per_class": 5, "few_label_draws": 20},
            **{"sgd_epochs": 100, "sgd_learning_rates": [0.01, 0.03, 0.1, 0.3, 1.0]},
            **{"finetune_epochs": 30, "finetune_optimizer": "sgd", "finetune_lr": 0.05},
            "finetune_fractions": [1.0],
        },
        "guard": {
            **{"action": "warn", "min_std": 0.05, "min_rank": 3, "every_n_steps": 50},
            **{"patience": 3, "max_samples": 1024, "max_growth": 1000},
        },
        "duality": {"every_n_steps": 50, "max_samples": 1024},
        "best_checkpoint": {"monitor": "val/probe_top1", "mode": "max"},
        "last_checkpoint": {"every_n_epochs": 1, "every_n_steps": None},
        "preemption.every_n_steps": 10,
        "trainer.max_epochs": 100,
        "trainer.accumulate_grad_batches": 1,
        "trainer.gradient_clip_val": None,
    },
    "data/cifar10.yaml": {**SMALL_IMAGES, "data.source": "cifar10"},
    "data/cifar100.yaml": {**SMALL_IMAGES, "data.source": "cifar100"},
    "data/stl10.yaml": {
        "data.view1": {
            **{**CROP_AND_BLUR, "scale": [0.2, 1.0]},
            **BYOL_COLOURS,
            **{"blur": 0.5, "solarize": 0},
        },
        "model.init_args.backbone": "resnet18",
        "model.init_args.base_lr": 0.12,
        "model.init_args.weight_decay": 5e-4,
    },
    "data/folder.yaml": {"recipe": "auto", "data.source": "folder"},  # see data/test_recipe.py
    "data/digits.yaml": {
        **GREY_IMAGES,
        "data.view1": {
            **{**CROP_AND_BLUR, "scale": [0.3, 1.0], "flip": 0},  # a mirrored digit is another sign
            **{**BYOL_COLOURS, "gray": 0, "blur": 0, "solarize": 0},
        },
        "data.subset": None,
        "trainer.max_epochs": 40,
    },
    "data/fashion_mnist.yaml": {
        **GREY_IMAGES,
        "data.view1": {
            **{**CROP_AND_BLUR, "scale": [0.2, 1.0]},
            **{**BYOL_COLOURS, "gray": 0, "blur": 0, "solarize": 0},
        },
        "data.subset": 10_000,
        "trainer.max_epochs": 10,
    },
    "augmentations/symmetric.yaml": {  # SimCLR, appendix A, strength 1
        "data.view1": {
            **{**CROP_AND_BLUR, **BYOL_COLOURS, "blur": 0.5, "solarize": 0},
            **{"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2},
        },
        "data.view2": NO_CHANGE,
    },
    "augmentations/asymmetric.yaml": {  # BYOL, table 6
        "data.view1": {**CROP_AND_BLUR, **BYOL_COLOURS, "blur": 1.0, "solarize": 0},
        "data.view2": {**NO_CHANGE, "blur": 0.1, "solarize": 0.2},
    },
    "optimizers/vit.yaml": {  # MoCo v3, appendix A; it clips nothing
        "model.init_args.optimizer.class_path": "torch.optim.AdamW",
        "model.init_args.base_lr": 1.5e-4,
        "model.init_args.weight_decay": 0.1,
        "model.init_args.warmup_epochs": 40,
        "trainer.gradient_clip_val": 1.0,
    },
    "hardware/ddp.yaml": {
        **GPUS,
        "trainer.devices": -1,
        "trainer.sync_batchnorm": True,  # a batch norm a process is another method
        "trainer.strategy.class_path": "lightning.pytorch.strategies.DDPStrategy",
        "trainer.strategy.init_args.timeout": "0:10:00",
    },
    "hardware/multi_node.yaml": {
        **GPUS,
        "trainer.devices": 8,
        "trainer.num_nodes": 2,
        "trainer.sync_batchnorm": True,
        "trainer.strategy.init_args.timeout": "0:10:00",
    },
    "hardware/gpu.yaml": {**GPUS, "trainer.devices": 1, "trainer.sync_batchnorm": False},
}

# Mean and deviation of the training images, channels and side; ImageNet's are torchvision's, and
# those of digits and Fashion-MNIST are computed again in test_sources.py.
STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...], int, int]] = {
    "digits": ((0.3054,), (0.3760,), 1, 16),
    "fashion_mnist": ((0.2860,), (0.3530,), 1, 28),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), 3, 32),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), 3, 32),
    "stl10": ((0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713), 3, 96),
    "folder": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 3, 224),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 3, 224),
}


@pytest.mark.parametrize("config", RESOLVED)
def test_config_comes_to_these_values(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = [] if config.startswith(("methods", "experiments")) else ["--model", "VICReg"]
    with pytest.raises(SystemExit):
        main(["fit", *model, "-c", str(CONFIGS / config), "--print_config"])
    resolved = yaml.safe_load(capsys.readouterr().out)

    def value(option: str) -> Any:
        found = resolved
        for name in option.split("."):
            found = found[name]
        return found

    assert {option: value(option) for option in RESOLVED[config]} == RESOLVED[config]


@pytest.mark.parametrize("name", STATISTICS)
def test_source_has_these_statistics(name: str) -> None:
    source = create_source(name)
    assert (source.mean, source.std, source.channels, source.image_size) == STATISTICS[name]


def test_every_shipped_source_is_in_the_table() -> None:
    shipped = {s for s in available_sources() if create_source(s).__module__.startswith("duality")}
    assert shipped == set(STATISTICS)


def test_grey_is_the_luma_of_itu_r_601() -> None:
    assert GRAY_WEIGHTS == (0.2989, 0.587, 0.114)  # as torchvision rounds them
