"""NSCL, SupCon and MoCo v3: published values, identities, and what public code gets wrong."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.criteria_cases import make_views
from helpers.references import grid
from torch import Tensor

from duality_ssl.criteria import DCL, NSCL, MoCoV3, SimCLR, SupCon
from duality_ssl.functional import supervision_gap, supervision_gap_bound

Z1, LABELS = grid(8, 5), torch.arange(8) // 2
Z2 = Z1 + grid(8, 5, 2) / 2
TARGETS = Z1 + grid(8, 5, 3) / 2, Z1 + grid(8, 5, 4) / 2


@pytest.mark.parametrize(
    ("criterion", "inputs", "expected"),
    [
        pytest.param(NSCL(0.5), {"labels": LABELS}, 1.03619511006052, id="NSCL"),
        pytest.param(SupCon(0.1), {"labels": LABELS}, 7.70672617488357, id="SupCon-0.1"),
        pytest.param(SupCon(0.5), {"labels": LABELS}, 2.85741982605019, id="SupCon-0.5"),
        pytest.param(MoCoV3(), {"targets": TARGETS}, 5.78847429038208, id="MoCoV3-1"),
        pytest.param(MoCoV3(0.2), {"targets": TARGETS}, 0.487914245819487, id="MoCoV3-0.2"),
    ],
)
def test_published_values(criterion: Any, inputs: dict[str, Any], expected: float) -> None:
    assert criterion(Z1, Z2, **inputs)["loss"].item() == pytest.approx(expected, rel=1e-12)


def _logits() -> tuple[Tensor, Tensor, Tensor]:
    """All similarities at a temperature of 0.5; which are of a sample's class, and its partner."""
    u = F.normalize(torch.cat([Z1, Z2]))
    classes = LABELS.repeat(2)
    return u @ u.T / 0.5, classes[:, None] == classes, torch.arange(16).roll(8)


def _positive_beside_the_negatives() -> Tensor:
    logits, same, partner = _logits()
    same = same.scatter(1, partner[:, None], False)
    return F.cross_entropy(logits.masked_fill(same, -torch.inf), partner)


def _positive_twice() -> Tensor:
    logits, _, partner = _logits()
    positives = logits.gather(1, partner[:, None])
    logits = torch.cat([positives, logits.masked_fill(torch.eye(16).bool(), -torch.inf)], dim=1)
    return (logits.logsumexp(dim=1) - positives[:, 0]).mean()


@pytest.mark.parametrize(
    ("mistaken", "theirs"),
    [(_positive_beside_the_negatives, 1.35911587320366), (_positive_twice, 1.65132138661576)],
)
def test_nscl_is_not_what_its_authors_code_computes(
    mistaken: Callable[[], Tensor], theirs: float
) -> None:
    assert mistaken().item() == pytest.approx(theirs, rel=1e-12)
    assert NSCL(0.5)(Z1, Z2, labels=LABELS)["loss"].item() < theirs - 0.3


def test_supcon_has_no_positives_inside_of_one_logarithm() -> None:
    """That is L_in, of equation 3, in solo-learn without the number of positives."""
    logits, same, _ = _logits()
    itself = torch.eye(16).bool()
    inside = logits.masked_fill(itself | ~same, -torch.inf).logsumexp(dim=1)
    every = logits.masked_fill(itself, -torch.inf).logsumexp(dim=1)
    theirs = (every - inside).mean()
    sizes = torch.tensor(3.0, dtype=torch.float64)
    ours = SupCon(0.5)(Z1, Z2, labels=LABELS)["loss"]
    assert ours > theirs + sizes.log() + 0.01  # by Jensen's inequality


def test_moco_has_no_pairs_within_a_view() -> None:
    """Queries that agree with each other cost nothing, unlike in SimCLR."""
    z = torch.eye(4, dtype=torch.float64)
    near = z + 100
    keys = (z, z)
    assert MoCoV3()(near, near, targets=keys)["contrast"].item() == pytest.approx(
        4 * torch.logsumexp(F.normalize(near) @ z.T, dim=1).mean().item()
    )


@pytest.mark.parametrize("labels", [torch.arange(8), torch.tensor([9, 4, 0, 7, 1, 3, 2, 10**12])])
def test_with_a_class_a_sample_labels_change_nothing(labels: Tensor) -> None:
    for supervised, plain in ((NSCL(0.3), DCL(0.3)), (SupCon(0.3), SimCLR(0.3))):
        ours = supervised(Z1, Z2, labels=labels)
        for term, value in plain(Z1, Z2).items():
            torch.testing.assert_close(ours[term], value, rtol=1e-12, atol=1e-12)


def test_names_of_classes_do_not_matter() -> None:
    for criterion in (NSCL(), SupCon()):
        ours = criterion(Z1, Z2, labels=7 - 2 * LABELS)["loss"]
        assert ours == criterion(Z1, Z2, labels=LABELS)["loss"]


def test_a_class_of_one_sample_has_its_partner() -> None:
    """Beside classes of others: finite, and pulled to the partner alone."""
    labels = torch.tensor([0, 1, 1, 1, 1, 1, 1, 1])
    z1 = Z1.clone().requires_grad_()
    loss = SupCon()(z1, Z2, labels=labels)["loss"]
    (gradient,) = torch.autograd.grad(loss, z1)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    nearer = Z1.clone()
    nearer[0] = Z2[0]
    alone = [SupCon(0.3)(z, Z2, labels=labels)["invariance"] for z in (Z1, nearer)]
    assert alone[1] < alone[0]


def test_supcon_of_classes_apart_costs_less_than_of_one_point() -> None:
    apart = torch.eye(8, dtype=torch.float64)[LABELS]
    losses = [SupCon()(z, z, labels=LABELS)["loss"] for z in (apart, torch.ones_like(apart))]
    assert losses[0] < losses[1]


@pytest.mark.parametrize("criterion", [NSCL(), SupCon()], ids=["NSCL", "SupCon"])
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            torch.tensor([0, 1, -1, 1, 0, 1, 0, 1]),
            "label of 0 or more for each sample, but got -1",
        ),
        (torch.arange(7), r"`labels` to be 8 integers, one a sample, but got \(7,\), torch.int64"),
        (torch.rand(8), r"but got \(8,\), torch.float32"),
        (torch.zeros(8, 2).long(), r"but got \(8, 2\)"),
    ],
    ids=["unlabelled", "fewer", "floats", "matrix"],
)
def test_bad_labels_are_refused(criterion: Any, labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        criterion(Z1, Z2, labels=labels)


def test_one_class_has_no_negatives() -> None:
    with pytest.raises(ValueError, match="but all 8 of the batch are of class 3 and have no neg"):
        NSCL()(Z1, Z2, labels=torch.full((8,), 3))
    assert SupCon()(Z1, Z2, labels=torch.full((8,), 3))["loss"].isfinite()


def test_labels_that_are_missing_are_asked_for() -> None:
    with pytest.raises(ValueError, match="Expected `labels` for NSCL: pass labels="):
        NSCL()(Z1, Z2)


def test_no_gradient_reaches_the_targets() -> None:
    z1, t1, t2 = (x.clone().requires_grad_() for x in (Z1, *TARGETS))
    MoCoV3()(z1, Z2, targets=(t1, t2))["loss"].backward()
    assert z1.grad is not None
    assert t1.grad is None
    assert t2.grad is None


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
@pytest.mark.parametrize(
    "labels", [LABELS, torch.arange(8), torch.tensor([0, 0, 0, 0, 0, 0, 0, 1])], ids=str
)
@pytest.mark.parametrize("kind", ["random", "one point", "classes opposite"])
def test_theorem_1(kind: str, labels: Tensor, temperature: float) -> None:
    """The gap is that of the criteria, and within its bound."""
    z1, z2 = make_views(8, 5)
    if kind != "random":
        z1 = torch.ones(8, 5, dtype=torch.float64)
        z1 = z2 = z1 if kind == "one point" else (1 - 2.0 * (labels == labels[0]))[:, None] * z1
    gap = supervision_gap(z1, z2, labels, temperature)
    dcl = DCL(temperature)(z1, z2)["loss"]
    torch.testing.assert_close(gap, dcl - NSCL(temperature)(z1, z2, labels=labels)["loss"])
    assert -1e-12 < gap <= supervision_gap_bound(labels, temperature)


def test_theorem_1_on_the_published_case() -> None:
    gap, bound = supervision_gap(Z1, Z2, LABELS, 0.5), supervision_gap_bound(LABELS, 0.5)
    assert gap.item() == pytest.approx(0.100869161662089, rel=1e-12)
    assert bound.item() == pytest.approx(2.95487816103782, rel=1e-12)
    assert supervision_gap_bound(LABELS, 1e-3).item() == pytest.approx(2000, rel=1e-2)
    assert supervision_gap_bound(torch.zeros(4).long()).isinf()
