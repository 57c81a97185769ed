"""A batch of 2, embeddings of one dimension: everything works on them, or says that it does not."""

from pathlib import Path

import pytest
import torch
from callbacks.test_numbers import fit, tiny
from helpers.criteria_cases import EXPORTED, build

from duality_ssl import criteria, methods
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
    if d < vars(criteria)[name].min_dimensions:
        with pytest.raises(ValueError, match=r"at least 2 dimension\(s\), but got D=1"):
            criterion(*views)
        return
    loss = criterion(*views)["loss"]
    loss.backward()
    assert loss.isfinite()
    assert all(z.grad is not None and z.grad.isfinite().all() for z in views)


@pytest.mark.parametrize("method", [name for name in EXPORTED if hasattr(methods, name)])
@pytest.mark.parametrize(
    ("size", "projector"), [(2, "16-16"), (8, "16-1")], ids=["batch of 2", "one dimension"]
)
def test_a_fit_of_the_smallest_batches_works(
    tmp_path: Path, method: str, size: int, projector: str
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
    if size == 2 and method == "NSCL":
        with pytest.raises(ValueError, match=r"all 2 of the batch are of class \d and have no neg"):
            fit(tmp_path, CollapseGuard(), *others, module=module, data=data, **settings)
        return
    _, error, steps = fit(tmp_path, CollapseGuard(), *others, module=module, data=data, **settings)
    assert error == ""
    assert steps == 16 // size
    assert all(weight.isfinite().all() for weight in module.state_dict().values())
