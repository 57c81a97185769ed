"""Notebooks run in a fresh kernel, leave the maths to the package and assert their claims."""

import ast
import re
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)

# What belongs in `duality_ssl.functional`, where it has a test.
MATHS = re.compile(r"einsum|(mat|b|add)?mm|matmul|bmm|inner|outer|dot|svd\w*|eig\w*|(slog|log)?det")


class ThisInterpreter(AsyncKernelManager):
    """Starts the kernel `python3` in the running interpreter.

    ipykernel's own spec is used, not one that happens to be registered on the machine and may name
    another interpreter, so that no registration is needed either.
    """

    def _kernel_spec_manager_default(self) -> KernelSpecManager:
        return KernelSpecManager(parent=self, kernel_dirs=[])


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def nodes(path: Path) -> list[ast.AST]:
    """The syntax trees of all cells in one list; they parse, so there are no shell escapes."""
    return [node for cell in code_cells(path) for node in ast.walk(ast.parse(cell.source))]


def names(tree: list[ast.AST]) -> set[str]:
    """Every name and attribute that is used."""
    return {node.id for node in tree if isinstance(node, ast.Name)} | {
        node.attr for node in tree if isinstance(node, ast.Attribute)
    }


@pytest.mark.slow
@each_notebook
def test_runs_in_a_fresh_kernel(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))  # no start-up files
    work = tmp_path / "work"
    work.mkdir()
    client = NotebookClient(
        nbformat.read(path, as_version=4),
        kernel_name="python3",
        kernel_manager_class=ThisInterpreter,
        resources={"metadata": {"path": str(work)}},
        timeout=240,
    )
    client.execute()  # raises with the cell's traceback
    assert list(work.iterdir()) == [], "a notebook leaves no files behind"


@each_notebook
def test_defines_no_maths_of_its_own(path: Path) -> None:
    tree = nodes(path)
    assert not [node for node in tree if isinstance(node, ast.MatMult | ast.Lambda | ast.ClassDef)]
    functions = [node.name for node in tree if isinstance(node, ast.FunctionDef)]
    assert all(name.startswith("plot_") for name in functions)
    assert not {name for name in names(tree) if MATHS.fullmatch(name)}
    modules = {node.module for node in tree if isinstance(node, ast.ImportFrom)}
    assert any(module and module.startswith("duality_ssl") for module in modules)


@each_notebook
def test_asserts_its_identities(path: Path) -> None:
    called = [node.func for node in nodes(path) if isinstance(node, ast.Call)]
    assert "assert_close" in names(called)


@each_notebook
def test_is_stored_as_one_clean_run(path: Path) -> None:
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output.get("name") == "stderr"]
    text = "".join(output.get("text", "") for output in outputs)
    assert not re.search(r"(^|\s)/\w+/|site-packages|Warning", text), "no machine's paths, no noise"
    assert path.stat().st_size < 500_000
