import pytest
import torch
from torch import Tensor


@pytest.fixture
def small() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Three classes in five dimensions, 60 samples to train on and 30 to validate."""
    generator = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn(3, 5, generator=generator)
    y, y_val = torch.arange(60) % 3, torch.arange(30) % 3
    train = centres[y] + torch.randn(60, 5, generator=generator)
    return train, y, centres[y_val] + torch.randn(30, 5, generator=generator), y_val
