"""Runs the notebooks of docs/notebooks; as a script, writes them back with their outputs.

PYTHONPATH=tests python -m helpers.notebooks
"""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from helpers.paths import REPOSITORY
from ipykernel.kernelspec import write_kernel_spec
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode

# In the order in which they are read: the first one trains what the second one takes.
NOTEBOOKS = tuple(
    REPOSITORY / "docs" / "notebooks" / name for name in ("first_steps.ipynb", "own_words.ipynb")
)
# A training is one cell.
_SECONDS_PER_CELL = 1800


def run_notebook(path: Path, folder: Path) -> NotebookNode:
    """Execute a notebook by this Python, with this checkout, as if it lay in ``folder``.

    Data go there, too; nothing of the user's Jupyter is read or written.

    Returns:
        It with its outputs, and without what differs from run to run.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell ends with an error.
    """
    notebook = nbformat.read(path, as_version=4)
    with TemporaryDirectory() as private:
        write_kernel_spec(f"{private}/kernels/python3")
        specs = KernelSpecManager(kernel_dirs=[f"{private}/kernels"], ensure_native_kernel=False)
        manager = AsyncKernelManager(
            kernel_name="python3",
            kernel_spec_manager=specs,
            connection_file=f"{private}/connection.json",
            transport="ipc",
        )
        environment = {
            **os.environ,
            "DETECTRON2_DATASETS": str(folder / "datasets"),
            "IPYTHONDIR": private,
            "PYTHONPATH": str(REPOSITORY),
            # tqdm's, where there are no ipywidgets.
            "PYTHONWARNINGS": "ignore:IProgress not found",
        }
        client = NotebookClient(
            notebook,
            km=manager,
            timeout=_SECONDS_PER_CELL,
            record_timing=False,
            coalesce_streams=True,
        )
        client.execute(cwd=str(folder), env=environment, cleanup_kc=True)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def main() -> None:
    """Execute all in one fresh folder; they are written when the last of them has ended well."""
    with TemporaryDirectory() as folder:
        notebooks = [run_notebook(path, Path(folder)) for path in NOTEBOOKS]
    for path, notebook in zip(NOTEBOOKS, notebooks, strict=True):
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
