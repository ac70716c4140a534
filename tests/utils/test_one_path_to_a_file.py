"""What is written goes through `tagclip.utils.files`: no other code opens a file for writing."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

FOLDERS = ("tagclip", "tools", "projects", "datasets")
# Methods and functions that write a file of the name that they are given.
WRITERS = {
    "write_text", "write_bytes", "savefig", "imwrite", "VideoWriter", "save_file", "save_image",
    "copy", "copy2", "copyfile", "copytree", "move", "savez", "savez_compressed", "savetxt",
    "tofile", "to_csv", "to_parquet", "ParquetWriter", "extractall", "symlink_to", "symlink",
    "link", "hardlink_to", "rename", "replace", "TemporaryDirectory", "NamedTemporaryFile",
    "mkstemp", "mkdtemp", "urlretrieve", "mkdir", "makedirs", "touch", "save", "dump",
}  # fmt: skip
# Methods of these names of text, arrays, dicts, models and checkpointers.
OF_MODULES = {
    "copy": ("shutil",), "move": ("shutil",), "replace": ("os",), "rename": ("os",),
    "link": ("os",), "save": ("np", "torch", "torch.jit", "onnx"), "dump": ("json", "pickle"),
    "copy2": ("shutil",),
}  # fmt: skip
# File -> what it may call, and why.
ALLOWED = {
    "tagclip/utils/files.py": "is the path",
    "tagclip/utils/run_lock.py": "a lock, not a result",
    "tagclip/demo/media.py": "videos, in a file of path_atomic, which are read back",
    "tagclip/pretrained/saving.py": "in a folder of folder_atomic",
    "tagclip/bulk/manifest.py": "the folders of a run, within `writing`",
    "tagclip/bulk/ray_engine.py": "parts of shards that a cluster joins, removed in the end",
    "projects/MiniBench/minibench/generate.py": "in folders of folder_atomic",
    "projects/MiniBench/run_table.py": "the log of a process",
    "projects/WebDemo/webdemo": "files that a visitor downloads, in a temporary folder",
    "projects/Benchmark/benchmark": "what is measured, in a temporary folder",
    "tools/benchmark.py": "what is measured, in a temporary folder",
    "tools/install_detectron2.py": "comes before this library; in a temporary folder",
    "datasets/prepare_task.py": "links to images, under a temporary name",
    "datasets/prepare_coco_stuff.py": "a link to a folder",
}


def calls_that_write(path: Path) -> Iterator[str]:
    """Line and name of each call."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    buffers = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and "BytesIO()" in ast.unparse(node.value)
        for each in node.targets
        for target in (each.elts if isinstance(each, ast.Tuple) else [each])
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = getattr(function, "attr", getattr(function, "id", ""))
        owner = ast.unparse(function.value) if isinstance(function, ast.Attribute) else ""
        # Into memory, or a file of open_atomic.
        given = [ast.unparse(argument) for argument in node.args]
        if name == "open":
            modes = [a.value for a in (*node.args, *(k.value for k in node.keywords))
                     if isinstance(a, ast.Constant) and isinstance(a.value, str)]  # fmt: skip
            has_file = any(keyword.arg == "fileobj" for keyword in node.keywords)
            writes = not has_file and any(re.fullmatch("[rb]?[wax+][bt+]*", m) for m in modes)
        else:
            is_module = owner in OF_MODULES.get(name, (owner,))
            is_picture = name == "save" and "Image." in owner
            into_memory = {*given} & {*buffers, "file"}
            writes = name in WRITERS and (is_module or is_picture) and not into_memory
        if writes:
            yield f"{node.lineno}: {ast.unparse(function)}({', '.join(given)[:60]})"


def test_no_other_code_writes_files(repository: Path) -> None:
    found, needed = [], set()
    for path in sorted(p for folder in FOLDERS for p in (repository / folder).rglob("*.py")):
        name = path.relative_to(repository).as_posix()
        allowed = [start for start in ALLOWED if name.startswith(start)]
        for call in calls_that_write(path):
            needed.update(allowed)
            found += [] if allowed else [f"{name}:{call}"]
    assert not found, "\n".join(found)
    assert needed == ALLOWED.keys(), "an exception that nothing needs"
