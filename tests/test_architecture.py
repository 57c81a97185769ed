"""Who may import whom, read off the syntax trees; and that importing the package costs nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import duality_ssl

PACKAGE = Path(duality_ssl.__file__).parent
ALLOWED = {  # besides `_internals`
    "__init__": {"data", "methods", "networks"},
    "__main__": {"cli"},
    "distributed": set(),
    "registry": set(),
    "files": set(),
    "batches": set(),
    "randomness": set(),
    "optim": set(),
    "_internals": set(),
    "functional": {"distributed"},
    "criteria": {"functional", "distributed", "randomness"},
    "networks": {"distributed", "files", "registry"},
    "data": {"distributed", "randomness", "registry"},
    "evaluation": {"data", "functional"},
    "reports": {"files", "sweeps"},
    "runs": {"distributed", "files", "networks"},
    "callbacks": {
        *("batches", "criteria", "data", "distributed", "evaluation", "files", "functional"),
        *("randomness", "runs"),
    },
    "methods": {"batches", "criteria", "distributed", "networks", "optim", "registry"},
    "sweeps": {"data", "files", "registry", "runs"},
    "cli": {"callbacks", "data", "methods", "registry", "reports", "runs", "sweeps"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_part_imports_only_what_it_may(path: Path) -> None:
    own = {name.split(".")[1] for name in imports(path) if name.startswith("duality_ssl.")}
    assert own - {part(path), "_internals"} <= ALLOWED[part(path)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_distributed_names_torch_distributed(path: Path) -> None:
    named = any(name.startswith("torch.distributed") for name in imports(path))
    assert not named or part(path) == "distributed"


def test_the_maths_imports_torch_alone() -> None:
    code = (
        "import sys, duality_ssl.criteria, duality_ssl.distributed, duality_ssl.functional; "
        "print(*{'lightning', 'torchvision', 'timm', 'sklearn'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_importing_the_package_imports_neither_torch_nor_lightning() -> None:
    code = "import sys, duality_ssl; print(*{'torch', 'lightning'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_command_imports_no_heavy_library_before_it_is_used() -> None:
    code = (
        "import sys, lightning.pytorch.cli; before = {*sys.modules}; import duality_ssl.cli; "
        "new = {name.partition('.')[0] for name in {*sys.modules} - before}; print(*new)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"IPython", "kornia", "matplotlib", "pandas", "pl_bolts", "sklearn", "tensorboard"}
    assert not {*done.stdout.split()} & (heavy | {"scipy", "timm", "torchmetrics", "torchvision"})


def test_public_names_are_there() -> None:
    for name in duality_ssl.__all__:
        assert getattr(duality_ssl, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'VicReg'"):
        duality_ssl.VicReg  # noqa: B018 the access is the test
