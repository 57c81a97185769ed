"""The benchmarks run, their harness measures what it claims, and the page shows their figures."""

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from helpers import references, references_statistics
from torch import Tensor

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks"
PAGE = ROOT / "docs" / "benchmarks.md"
PARTS = {"measure", "render", "studies", "table_of_methods", "targets", "textbook"}
SCRIPTS = sorted({path.stem for path in FOLDER.glob("*.py")} - PARTS)
FLOATS = 2**18  # 1 MiB in float32


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """A module of the benchmarks' folder."""
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module


@pytest.fixture
def measure(load: Callable[[str], ModuleType]) -> ModuleType:
    return load("measure")


@pytest.fixture
def render(load: Callable[[str], ModuleType]) -> ModuleType:
    return load("render")


# --------------------------------------------------------------------------------------------------
# The scripts


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_smoke_run(script: str, tmp_path: Path, render: ModuleType) -> None:
    words = [sys.executable, str(FOLDER / f"{script}.py"), "--smoke", "--out", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    written = {path.stem: render.read(path.stem, tmp_path) for path in tmp_path.glob("*.jsonl")}
    assert script in written
    for name, rows in written.items():
        assert rows
        assert all({"what", "processor", "threads", "versions"} <= row.keys() for row in rows)
        assert render.table(name, rows) in done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_is_imported(script: str, load: Callable[[str], ModuleType]) -> None:
    """A renamed import is noticed without the smoke runs, which are slow."""
    assert load(script).__doc__


def test_make_runs_every_script() -> None:
    listed = re.search(r"^BENCHMARKS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert listed is not None
    assert sorted(listed[1].split()) == SCRIPTS


# --------------------------------------------------------------------------------------------------
# The harness


def test_contenders_take_turns(measure: ModuleType) -> None:
    order: list[str] = []
    contenders = {name: partial(order.append, name) for name in "abc"}
    medians = measure.alternate(contenders, repeats=5, warmup=2)
    assert "".join(order) == 7 * "abc"
    assert medians.keys() == contenders.keys()
    assert all(0 < seconds < 1 for seconds in medians.values())


def test_slow_contenders_are_run_three_times(
    measure: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    seconds = {"fast": 0.5, "slow": 2.0}

    def took(run: Callable[[], object]) -> float:
        run()
        return seconds[order[-1]]

    monkeypatch.setattr(measure, "_seconds", took)
    contenders = {name: partial(order.append, name) for name in seconds}
    assert measure.alternate(contenders, repeats=7, warmup=2) == seconds
    assert {name: order.count(name) for name in seconds} == {"fast": 2 + 7, "slow": 1 + 3}


def test_median_leaves_an_interruption_out(
    measure: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = iter([9.0, 0.1, 0.2, 0.3, 0.4, 0.9])
    monkeypatch.setattr(measure, "_seconds", lambda run: next(readings))
    medians = measure.alternate({"a": list}, repeats=5, warmup=1)
    assert medians == {"a": 0.3}
    assert medians.spread["a"] == pytest.approx((0.4 - 0.2) / 2 / 0.3)


class WithScratch(torch.autograd.Function):
    """The identity, whose backward pass needs 8 MiB for a moment."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        torch.empty(8 * FLOATS)
        return grad


def two_at_a_time() -> None:
    first = torch.empty(FLOATS)
    second = torch.empty(2 * FLOATS)
    del first
    torch.empty(3 * FLOATS)
    del second


ALLOCATIONS: dict[str, tuple[Callable[[Tensor], object], int]] = {
    "nothing": (lambda z: z.view(-1), 0),
    "one tensor, kept": (lambda z: torch.empty(FLOATS), 1),
    "only what is held at once": (lambda z: two_at_a_time(), 5),
    "a temporary": (lambda z: (z.detach() + 1).sum(), 1),
    "inside an operator": (lambda z: torch.linalg.cholesky_ex(torch.eye(512)), 2),
    "backward pass by hand": (
        lambda z: torch.autograd.grad(WithScratch.apply(z).sum(), z),
        8,  # the gradient of the sum is expanded, not stored
    ),
}


@pytest.mark.parametrize(("run", "mebibytes"), ALLOCATIONS.values(), ids=ALLOCATIONS)
def test_peak_memory_is_exact(
    run: Callable[[Tensor], object],
    mebibytes: int,
    measure: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # a CPU's allocator is asked
    z = torch.randn(FLOATS, requires_grad=True)
    extra = measure.peak_memory(lambda: run(z)) - mebibytes * 2**20
    assert 0 <= extra < 200  # scalars


def test_what_was_held_before_is_not_counted(measure: ModuleType) -> None:
    before = [torch.empty(4 * FLOATS)]

    def replace() -> Tensor:
        before.clear()
        return torch.empty(FLOATS)

    assert measure.peak_memory(replace) == 2**20


def test_rows_are_kept_with_the_machine(
    measure: ModuleType, render: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = measure.save("any", [{"what": "a", "ours": 0.0123456}], tmp_path / "new")
    (row,) = render.read("any", path.parent)
    assert row == {**measure.machine(), "what": "a", "ours": 0.01235}
    assert "12.3 ms" in capsys.readouterr().out
    measure.save("any", [{"what": "a", "threads": "64"}], path.parent)
    assert render.read("any", path.parent)[0]["threads"] == "64"


# --------------------------------------------------------------------------------------------------
# What is compared


def textbook_cases() -> dict[str, tuple[str, dict[str, Any], Callable[..., float]]]:
    same = {"similarity": "cosine", "normalization": "embeddings"}
    vicreg = {"invariance": 25, "variance": 25}
    return {
        "vicreg": ("vicreg", {**vicreg, "covariance": 1}, references.vicreg),
        "vicreg_exp": (
            "vicreg_exp",
            {**vicreg, "covariance": 2.5, "temperature": 0.1},
            references.vicreg_exp,
        ),
        "vicreg_ctr": (
            "vicreg_ctr",
            {**vicreg, "covariance": 3.75, "temperature": 0.15},
            references.vicreg_ctr,
        ),
        "barlow_twins": (
            "barlow_twins",
            {"redundancy": 0.005, "scale": 1.0},
            references.barlow_twins,
        ),
        "tcr": ("tcr", {"invariance": 100, "distortion": 0.2}, references.tcr),
        "vibcreg": (
            "vibcreg",
            {**vicreg, "covariance": 200},
            references_statistics.vibcreg,
        ),
        "mmcr": ("mmcr", {"compactness": 0}, references_statistics.mmcr),
        "frossl": ("frossl", {"invariance": 1}, references_statistics.frossl),
        "spectral": ("spectral_contrastive", {"mu": 1.0}, references.spectral_contrastive),
        "simclr": ("simclr", {"temperature": 0.15, **same}, references.simclr),
        "dense": ("simclr_dense", {"temperature": 0.15, **same}, references.simclr),
        "dcl": ("dcl", {"temperature": 0.1, **same}, references.dcl),
    }


@pytest.mark.parametrize(
    ("name", "arguments", "reference"), textbook_cases().values(), ids=textbook_cases()
)
def test_textbook_is_the_formula(
    name: str,
    arguments: dict[str, Any],
    reference: Callable[..., float],
    load: Callable[[str], ModuleType],
) -> None:
    draw = np.random.default_rng(0)
    z1, z2 = (0.7 * draw.standard_normal((6, 5)) for _ in range(2))
    loss = getattr(load("textbook"), name)(torch.tensor(z1), torch.tensor(z2))
    assert loss.item() == pytest.approx(reference(z1, z2, **arguments), rel=1e-9)


def test_lightly_has_our_convention_where_we_say_so(load: Callable[[str], ModuleType]) -> None:
    pytest.importorskip("lightly", reason="comes with the bench extra")
    criteria = load("criteria")
    draw = torch.Generator().manual_seed(0)
    for shape in ((6, 9), (9, 6)):
        views = [
            torch.randn(shape, dtype=torch.float64, generator=draw, requires_grad=True)
            for _ in range(2)
        ]
        for name, case in criteria.CASES.items():
            if case.lightly and case.comparable:
                steps = [
                    criteria.Step(loss, *views) for loss in (criteria.ours(case), case.lightly())
                ]
                for step in steps:
                    step()
                # batch norm's epsilon, in what lightly standardises
                assert steps[0].error(steps[1]) < (1e-4 if name == "Barlow Twins" else 1e-6), name


def test_a_disagreement_ends_the_run(
    load: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    criteria = load("criteria")
    wrong = criteria.CASES["TCR"]._replace(textbook=criteria.CASES["VICReg"].textbook)
    monkeypatch.setitem(criteria.CASES, "TCR", wrong)
    with pytest.raises(RuntimeError, match="TCR to agree with textbook"):
        criteria.compare("TCR", 4, 8, repeats=1)


@pytest.mark.parametrize(
    ("name", "wide", "tall"),
    [
        ("VICReg", 4, 4),
        ("Barlow Twins", 4, 3),
        ("TCR", 4, 4),
        ("Spectral contrastive", 3, 4),
        ("SimCLR", 7, 7 * 4),
        ("DCL-sq", 7, 7 * 4),
        ("MoCo v3", 4, 4 * 4),
        ("VICReg-exp", 4 * 4, 4),
        ("VICReg-ctr", 4, 4 * 4),
    ],
)
def test_floor_counts_the_products(
    name: str, wide: int, tall: int, load: Callable[[str], ModuleType]
) -> None:
    """In units of N D min(N, D); D = 4 N when wide, N = 4 D when tall."""
    criteria = load("criteria")
    for (n, d), expected in (((8, 32), wide), ((32, 8), tall)):
        views = criteria.views(n, d, "cpu", torch.float32)
        run, flops = criteria.floor(criteria.CASES[name], *views)
        run()
        assert flops == expected * 2 * n * d * min(n, d)


def test_peers_that_do_not_fit_are_left_out_and_named(load: Callable[[str], ModuleType]) -> None:
    criteria = load("criteria")
    found, notes = criteria.peers("SimCLR", 32768, 256)
    assert found == {}
    assert "textbook" in notes[0]
    assert notes[0].endswith("left out: over 8 GiB")


def test_without_the_bench_extra_the_textbook_is_the_peer(
    load: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    criteria = load("criteria")
    monkeypatch.setattr(criteria, "lightly", None)
    row = criteria.compare("VICReg", 4, 8, repeats=1)
    assert row["times_fastest"] == row["times_textbook"]
    assert "lightly" not in row


# --------------------------------------------------------------------------------------------------
# The page


def test_a_figure_comes_from_the_file(render: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table any -->\nold\n<!-- end any -->\nafter\n")
    rows = [
        {"what": "a", "ours": 0.0123, "times_peer": 2.5, "ours_bytes": 3 * 2**20, "threads": "2"},
        {"what": "b", "ours": 61.23, "note": "peer left out", "threads": "1"},
    ]
    (tmp_path / "any.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for _ in range(2):  # a second time changes nothing
        render.render(page, tmp_path)
        text = page.read_text()
        assert "|  | ours | peer / ours | ours memory |  |" in text
        assert "| a | 12.3 ms | 2.50x | 3.00 MiB |  |" in text
        assert "| b | 61.2 s |  |  | peer left out |" in text
        assert text.startswith("before\n<!-- table any -->\n|")
        assert text.endswith("1 or 2 threads.\n<!-- end any -->\nafter\n")
        assert "old" not in text


def test_slope_of_a_power_law(render: ModuleType) -> None:
    points = [
        {"what": "a", "who": "ours", "grows": grows, "n": n, "d": n, "seconds": n**2, "bytes": n}
        for grows in ("N", "D")
        for n in (1, 256, 512, 1024)
    ]
    (row,) = render.slopes(points)
    exponents = {key: round(value, 6) for key, value in row.items() if " by " in key}
    expected = {"time by N": 2, "memory by N": 1, "time by D": 2, "memory by D": 1}
    assert exponents == expected


def test_plots_are_drawn(render: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [
        {"what": "a", "who": who, "grows": grows, "n": n, "d": n, "seconds": n, "bytes": n}
        for who in ("ours", "lightly")
        for grows in ("N", "D")
        for n in (1, 2)
    ]
    (tmp_path / "growth.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [path.name for path in render.plot(tmp_path)] == ["growth_n.svg", "growth_d.svg"]
    assert "a, lightly" in (tmp_path / "growth_n.svg").read_text()


def test_targets_are_judged_by_the_figures(load: Callable[[str], ModuleType]) -> None:
    targets = load("targets")
    shape = {"what": "VICReg", "n": 256, "d": 8192}
    row = {**shape, "times_lightly": 81.0, "times_textbook": 79.0, "of_allowance": 0.9}
    worse = {"what": "TCR", "n": 256, "d": 2048, "of_allowance": 1.2}
    lines = {
        line["what"]: line
        for line in targets.reached(lambda name: [row, worse] if name == "criteria" else [])
    }
    lightly, textbook, *_, last = lines.values()
    assert (lightly["measured"], lightly["reached"]) == ("81x", "yes")
    assert (textbook["measured"], textbook["reached"]) == ("79x", "**no**")
    assert (last["measured"], last["reached"]) == ("not measured", "?")
    memory = lines["VICReg, Barlow Twins, TCR, spectral: memory over the allowance"]
    assert (memory["measured"], memory["reached"]) == ("1.2x", "**no**")
    assert memory["least favourable"] == "TCR (256, 2,048)"


def test_page_says_what_the_files_say(render: ModuleType, tmp_path: Path) -> None:
    copy = tmp_path / "page.md"
    copy.write_text(PAGE.read_text())
    render.render(copy)
    assert copy.read_text() == PAGE.read_text(), "run `python benchmarks/render.py`"


def test_every_table_of_numbers_is_between_markers() -> None:
    text = PAGE.read_text()
    typed = re.sub(r"<!-- table ([\w-]+) -->.*?<!-- end \1 -->", "", text, flags=re.DOTALL)
    rows = [line for line in typed.splitlines() if line.startswith("|")]
    assert [row for row in rows if re.search(r"\d+[.,]\d|\d ?(x|ms|s|%|[MG]iB)\b", row)] == []
