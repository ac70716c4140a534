"""Annotation formats of other tools, read into one common structure.

A reader is a module with two functions:

* ``class_names(path) -> tuple[str, ...]``: the classes in the tool's own order;
* ``read(path, images=None) -> Iterator[AnnotatedImage]``: one image after the other, so that memory
  does not grow with pixels. ``path`` is the export, a file or a folder as the tool writes it;
  ``images`` the folder of the images, for formats that do not tell their sizes.

Both raise `DatasetError`, one line with the file, for what is damaged.
"""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["READERS", "reader"]

# Name on the command line -> module. Only the one asked for is imported.
READERS = {
    "coco": "tagclip.data.formats.coco",
    "cvat": "tagclip.data.formats.cvat",
    "datumaro": "tagclip.data.formats.datumaro",
    "label-studio": "tagclip.data.formats.label_studio",
    "label-studio-png": "tagclip.data.formats.label_studio_png",
    "labelme": "tagclip.data.formats.labelme",
    "supervisely": "tagclip.data.formats.supervisely",
    "yolo-seg": "tagclip.data.formats.yolo_seg",
}


def reader(name: str) -> ModuleType:
    """The module that reads a format of `READERS`."""
    return importlib.import_module(READERS[name])
