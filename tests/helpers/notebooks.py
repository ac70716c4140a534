"""The notebooks of docs/notebooks, run by the kernel of this Python; as a script, written anew.

PYTHONPATH=tests python -m helpers.notebooks FOLDER

runs them in FOLDER, where MiniBench's model is trained unless it is there.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nbformat
from helpers.paths import REPOSITORY
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOKS = [REPOSITORY / "docs" / "notebooks" / f"{n}.ipynb" for n in ("first_steps", "own_words")]
# Of a cell, which trains a model.
_SECONDS = 3600
_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def read(path: Path) -> NotebookNode:
    """A notebook as it is committed."""
    return nbformat.read(path, as_version=4)


def executed(path: Path, folder: Path) -> NotebookNode:
    """Run a notebook in a folder; without what differs from run to run, such as times.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails.
    """
    notebook = read(path)
    # Without kernels of the user, "python3" is this Python.
    specs = KernelSpecManager(kernel_dirs=[])
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=specs)
    path_of_package = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    # tqdm, which open_clip imports, asks for ipywidgets in every kernel that lacks them.
    quiet = {"PYTHONWARNINGS": "ignore:IProgress not found"}
    environment = {**os.environ, **quiet, "PYTHONPATH": path_of_package}
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, timeout=_SECONDS, resources=resources)
    # Not as an argument: the client ends only a kernel that is its own.
    client.km = manager
    client.execute(env=environment)
    notebook.metadata = nbformat.from_dict(_METADATA)
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
    return notebook


def main() -> None:
    """Run all notebooks in the folder that the command line names and write them anew."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for path in NOTEBOOKS:
        nbformat.write(executed(path, folder), path)


if __name__ == "__main__":
    main()
