"""A batch of 2, embeddings of one dimension: everything works on them, or says that it does not."""

from pathlib import Path

import pytest
import torch
from callbacks.test_numbers import fit, tiny
from helpers.criteria_cases import EXPORTED, build
from torch import nn

from duality_ssl.callbacks import (
    CollapseGuard,
    DualityMonitor,
    OnlineKNN,
    OnlineLinearProbe,
    RankMe,
)
from duality_ssl.data import SSLDataModule


@pytest.mark.parametrize("name", EXPORTED)
@pytest.mark.parametrize("kind", ["random", "equal views", "equal rows", "zeros"])
@pytest.mark.parametrize(("n", "d"), [(2, 1), (2, 64), (64, 1)], ids=str)
def test_a_criterion_works_on_the_smallest_batches_or_refuses(
    name: str, kind: str, n: int, d: int
) -> None:
    criterion = build(name)
    z1, z2 = torch.randn(2, n, d, generator=torch.Generator().manual_seed(0))
    if kind == "equal views":
        z2 = z1
    elif kind != "random":
        z1 = z2 = (z1[:1] if kind == "equal rows" else 0 * z1[:1]).expand(n, d)
    views = [z.half().clone().requires_grad_() for z in (z1, z2)]
    if d < criterion.min_dimensions:
        with pytest.raises(ValueError, match=r"at least 2 dimension\(s\), but got D=1"):
            criterion(*views)
        return
    loss = criterion(*views)["loss"]
    loss.backward()
    assert loss.isfinite()
    assert all(z.grad is not None and z.grad.isfinite().all() for z in views)


@pytest.mark.parametrize("method", EXPORTED)
@pytest.mark.parametrize(
    ("size", "projector", "told"),
    [
        (2, "16-16", "Step 1: batch norm of a batch of 2 makes each unit +1 or -1"),
        (8, "16-1", "Step 1: the embeddings have one dimension"),
    ],
    ids=["batch of 2", "one dimension"],
)
def test_a_fit_of_the_smallest_batches_works_and_says_what_it_lacks(
    tmp_path: Path, method: str, size: int, projector: str, told: str
) -> None:
    module = tiny(method, projector, in_channels=1)
    data = SSLDataModule("digits", batch_size=size, subset=16)
    both = ["backbone", "projector"]
    others = [OnlineLinearProbe(both), OnlineKNN(), RankMe(), DualityMonitor(every_n_steps=1)]
    settings = {"epochs": 1, "limit_val_batches": 2}
    if projector == "16-1" and method in ("VICRegExp", "VICRegCtr"):
        with pytest.raises(ValueError, match="at least 2 dimension"):
            fit(tmp_path, CollapseGuard(), *others, module=module, data=data, **settings)
        return
    said, error, steps = fit(
        tmp_path, CollapseGuard(), *others, module=module, data=data, **settings
    )
    assert said[0].startswith(told)
    assert "Set --data.batch_size higher" in said[0] or "end in 2 or more" in said[0]
    assert error == ""
    assert steps == 16 // size
    assert all(weight.isfinite().all() for weight in module.state_dict().values())


def test_batch_norm_of_two_rows_gives_signs() -> None:
    x = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(nn.BatchNorm1d(6)(x).abs(), torch.ones(2, 6), rtol=1e-2, atol=0)
