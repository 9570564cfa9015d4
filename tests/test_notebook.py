"""The notebook: it runs from a clean clone without network, uses public names alone, and can be read where nothing runs it."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
TOUR = ROOT / "notebooks" / "tour.ipynb"


def cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def source(cell: Any) -> str:
    return "".join(cell["source"])


def printed(notebook: Any) -> str:
    outputs = [output for cell in cells(notebook) for output in cell["outputs"]]
    return "".join("".join(output.get("text", "")) for output in outputs)


def pictures(notebook: Any) -> int:
    outputs = [output for cell in cells(notebook) for output in cell["outputs"]]
    return sum("image/jpeg" in output.get("data", {}) for output in outputs)


def test_the_stored_notebook_shows_its_pictures_and_is_small() -> None:
    stored = json.loads(TOUR.read_text())
    assert pictures(stored) >= 9 and TOUR.stat().st_size < 400_000
    assert all(cell["execution_count"] == number for number, cell in enumerate(cells(stored), 1))
    assert not any(output["output_type"] == "error" for cell in cells(stored) for output in cell["outputs"])


def test_cells_are_short_and_use_public_names_alone() -> None:
    for cell in cells(json.loads(TOUR.read_text())):
        assert len(source(cell).splitlines()) <= 26
        for node in ast.walk(ast.parse(source(cell))):
            if isinstance(node, ast.Attribute):
                assert not node.attr.startswith("_"), ast.unparse(node)
            if isinstance(node, ast.ImportFrom):
                assert not any(alias.name.startswith("_") for alias in node.names)


@pytest.mark.reference
def test_the_notebook_runs_offline_and_says_what_it_promises(monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("ipywidgets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # beside other tests: two threads a model would wait for each other
    notebook = nbformat.read(TOUR, as_version=4)
    here = {"metadata": {"path": str(TOUR.parent)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=here).execute()
    said = printed(notebook)
    assert "(1, 256)" in said and "(1, 50, 192)" in said and "(1, 49, 4)" in said
    dense, sparse, again, *_ = (line for line in said.splitlines() if "tokens: A man" in line)
    assert dense.startswith("196 tokens: ") and sparse.startswith(" 49 tokens: ") and again == dense
    assert [f"{count:3d} tokens: A man" in said for count in (16, 36, 64, 100)] == [True] * 4
    assert pictures(notebook) >= 9
    sliders = [
        output for cell in cells(notebook) for output in cell["outputs"] if "IntSlider" in str(output.get("data"))
    ]
    assert len(sliders) == 1
