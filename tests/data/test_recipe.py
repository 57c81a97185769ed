"""Options that follow from the images: the choices, and what is looked at."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from helpers.image_files import write_folder, write_image

from duality_ssl.data import recipe
from duality_ssl.data.recipe import Choice, Survey, recommend, survey

CPU = {"accelerator": "cpu", "cores": 2, "bfloat16": True}
GPU = {"accelerator": "gpu", "cores": 16, "bfloat16": True}
CASES: dict[str, tuple[dict[str, Any], int, int, dict[str, Any]]] = {
    "few small images": (
        CPU,
        2900,
        64,
        {
            "data.image_size": 32,
            "model.backbone": "resnet_tiny",
            "data.batch_size": 256,
            "trainer.max_epochs": 69,
            "model.warmup_epochs": 3.5,
            "model.base_lr": 0.002,
            "data.view1.scale": [0.4, 1.0],
            "data.num_workers": 0,
            "trainer.precision": "bf16-mixed",
        },
    ),
    "icons": (CPU, 1500, 20, {"data.image_size": 16, "data.batch_size": 128}),
    "photos on a CPU": (
        CPU | {"cores": 4},
        1000,
        375,
        {
            "data.image_size": 64,
            "model.backbone": "resnet18",
            "trainer.max_epochs": 60,
            "data.num_workers": 3,
            "trainer.precision": None,
        },
    ),
    "photos on a GPU": (
        GPU,
        20_000,
        375,
        {
            "data.image_size": 224,
            "model.backbone": "resnet18",
            "trainer.max_epochs": 400,
            "data.view1.scale": [0.2, 1.0],
            "data.num_workers": 8,
            "trainer.precision": "bf16-mixed",
        },
    ),
    "small images on a GPU": (
        GPU | {"bfloat16": False},
        9999,
        49,
        {
            "data.image_size": 64,
            "model.backbone": "resnet18_32",
            "model.projector": "2048-2048-2048",
            "trainer.precision": None,
        },
    ),
    "many photos": (
        GPU,
        1_281_167,
        375,
        {
            "model.backbone": "resnet50",
            "model.base_lr": 0.12,
            "trainer.max_epochs": 100,
            "data.view1.scale": [0.08, 1.0],
            "data.view1.blur": 0.5,
        },
    ),
    "many small images on a CPU": (CPU, 60_000, 28, {"trainer.max_epochs": 10}),
    "two epochs, by the user": (CPU | {"epochs": 2}, 2900, 64, {"model.warmup_epochs": 0.1}),
    "no end, by the user": (CPU | {"epochs": -1}, 1500, 64, {"model.warmup_epochs": 6.7}),
    "a handful": (CPU, 6, 64, {"data.batch_size": 2, "trainer.max_epochs": 400}),
    "twenty": (CPU, 20, 64, {"data.batch_size": 8}),
}


@pytest.mark.parametrize("case", CASES)
def test_choices(case: str) -> None:
    machine, images, side, expected = CASES[case]
    choices = recommend(images, side, **machine)
    found = {name: choices[name].value if name in choices else None for name in expected}
    assert found == expected
    assert all(choice.reason for choice in choices.values())


@pytest.mark.parametrize("images", [2, 5, 31, 129, 2048])
def test_a_batch_is_left_when_images_are_held_out(images: int) -> None:
    """A tenth of each class is held out, of classes of two images a half."""
    batch = recommend(images, 64, **CPU)["data.batch_size"].value
    assert 2 <= batch <= max(2, images - images // 2)


def test_config_and_block_of_the_choices() -> None:
    choices = {
        "model.optimizer": Choice({"class_path": "torch.optim.AdamW"}, "why"),
        "data.view1.scale": Choice([0.4, 1.0], "gentle"),
        "data.view1.hue": Choice(0.05, "replaced"),
    }
    assert recipe.as_config(choices) == {
        "model": {"init_args": {"optimizer": {"class_path": "torch.optim.AdamW"}}},
        "data": {"view1": {"scale": [0.4, 1.0], "hue": 0.05}},
    }
    kept = {"model.optimizer.class_path", "data.view1.scale"}
    first, *lines = recipe.describe(Survey(2900, 64), choices, kept).splitlines()
    assert "2,900 images of about 64 pixels" in first
    assert lines == [
        "  model.optimizer   AdamW       why",
        "  data.view1.scale  [0.4, 1.0]  gentle",
    ]


@pytest.mark.parametrize(("subset", "count"), [(None, 12), (5, 5), (99, 12), (0.5, 6)], ids=str)
def test_survey_counts_the_training_images(
    subset: int | float | None, count: int, tmp_path: Path
) -> None:
    write_folder(tmp_path)
    assert survey("folder", tmp_path, subset) == Survey(count, 38)  # 30, 33, 36, 39, 42, 45


def test_survey_leaves_out_validation_and_unreadable_headers(tmp_path: Path) -> None:
    for i in range(3):
        write_image(tmp_path / f"{i}.png", size=(90, 70))
    write_image(tmp_path / "val" / "0.png", size=(10, 10))
    (tmp_path / "bad.png").write_bytes(b"no image")
    assert survey("folder", tmp_path, None) == Survey(4, 70)


def test_survey_opens_few_files(tmp_path: Path) -> None:
    for i in range(100):
        (tmp_path / f"{i:02d}.png").touch()
    with patch.object(recipe, "_side", return_value=8) as opened:
        assert survey("folder", tmp_path, None) == Survey(100, 8)
    names = [call.args[0].name for call in opened.call_args_list]
    assert (len(names), names[0], names[-1]) == (64, "00.png", "98.png")


@pytest.mark.parametrize("root", [None, "missing", "."], ids=["none", "missing", "empty"])
def test_without_images_nothing_is_chosen(root: str | None, tmp_path: Path) -> None:
    assert survey("folder", root and tmp_path / root, None) is None


def test_survey_refuses_data_in_memory() -> None:
    with pytest.raises(ValueError, match=r"source of image files .* but got 'digits'"):
        survey("digits", None, None)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"avx2": True}, False),
        ({}, False),
    ],
    ids=["AVX512-BF16", "AMX", "AVX2", "unknown"],
)
def test_bfloat16_follows_the_instructions(found: dict[str, bool], expected: bool) -> None:
    with patch.object(torch.cpu, "get_capabilities", return_value=found):
        choices = recipe.recommend_here(2900, 64, "cpu")
    assert ("trainer.precision" in choices) is expected


@pytest.mark.parametrize("accelerator", ["auto", "gpu"])
def test_a_gpu_is_found(accelerator: str) -> None:
    with (
        patch.object(torch.cuda, "is_available", return_value=True),
        patch.object(torch.cuda, "is_bf16_supported", return_value=True),
    ):
        choices = recipe.recommend_here(2900, 64, accelerator)
        on_cpu = recipe.recommend_here(2900, 64, "cpu")
    assert choices["model.backbone"].value == "resnet18_32"
    assert on_cpu["model.backbone"].value == "resnet_tiny"
