"""Runs docs/notebook.ipynb from top to bottom in a kernel of its own, and keeps what it shows, which the site then shows too:

python tools/documentation/run_notebook.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

PATH = Path(__file__).parents[2] / "docs/notebook.ipynb"
_CELL_S = 120


def run(path: Path) -> nbformat.NotebookNode:
    """The notebook with new outputs: of a picture the PNG alone, and no warnings. Its kernel works in an empty folder.

    Raises:
        CellExecutionError: a cell failed
    """
    notebook = nbformat.read(path, as_version=4)
    # the kernel that is installed beside this Python, whatever the notebook was last opened with
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook, timeout=_CELL_S, kernel_name="python3", resources={"metadata": {"path": folder}}
        )
        client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [_plain(output) for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def _plain(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    if "image/png" in output.get("data", {}):
        output.data = nbformat.from_dict({"image/png": output.data["image/png"]})
    return output


if __name__ == "__main__":
    nbformat.write(run(PATH), PATH)
    sys.stdout.write(f"{PATH}: run\n")
