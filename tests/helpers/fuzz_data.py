"""Fuzz targets: label files, class lists, records of prepare scripts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.fuzzing import (
    Space,
    Target,
    changed_bytes,
    changed_tree,
    json_values,
    labels,
    repaired_png,
    target,
    tried,
)
from hypothesis import strategies as st
from PIL import Image

from tagclip import Vocabulary
from tagclip.data.datasets.manifest import LabelManifest, LabelOrigin
from tagclip.data.image_io import image_size, read_image
from tagclip.data.label_io import check_label, read_label
from tagclip.errors import DatasetError, TagCLIPError


@target
def label_bytes(space: Space) -> Target:
    """Random bytes behind the first ones of an image format."""
    starts = [
        b"",
        b"\x89PNG\r\n\x1a\n",
        b"II*\0",
        b"MM\0*",
        b"GIF89a",
        b"\xff\xd8\xff",
        b"BM",
        b"P5",
    ]
    inputs = st.tuples(st.sampled_from(starts), st.binary(max_size=300)).map(b"".join)
    return inputs, lambda content: read_all(space.write("label.png", content))


def read_all(path: Path) -> None:
    for read in (read_label, image_size, lambda path: read_image(path, max_pixels=10**6)):
        tried(lambda read=read: read(path))


@target
def label_changes(space: Space) -> Target:
    """Whole label files with changes, with and without checksums that fit."""
    files = labels()
    kinds = st.sampled_from(sorted(files))
    changes = kinds.flatmap(lambda kind: st.tuples(st.just(kind), changed_bytes(files[kind])))
    inputs = st.tuples(changes, st.booleans())

    def call(drawn: tuple[tuple[str, bytes], bool]) -> None:
        (kind, content), repaired = drawn
        content = repaired_png(content) if repaired else content
        read_all(space.write(kind, content))

    return inputs, call


@target
def label_kinds(space: Space) -> Target:
    """Every mode and size: read exactly, or refused; then compared with a class list."""
    vocabulary = Vocabulary.from_names(["cat", "dog", "grass"])
    sides = st.integers(1, 40)
    modes = st.sampled_from(["1", "L", "P", "I;16", "I", "F", "RGB", "RGBA", "LA", "CMYK"])
    inputs = st.tuples(modes, sides, sides, sides, st.integers(0, 2**31), st.sampled_from([3, 256]))

    def call(drawn: tuple[str, int, int, int, int, int]) -> None:
        mode, height, width, other, seed, top = drawn
        values = np.random.default_rng(seed).integers(0, top, (height, width)).astype(np.uint8)
        image = Image.fromarray(values.astype(np.uint16) if mode.startswith("I;") else values)
        image = image if mode in ("L", "I;16") else image.convert(mode)
        path = space.folder / "label.tif"
        image.save(path)
        if mode == "CMYK":
            with pytest.raises(DatasetError):
                read_label(path)
            return
        label = read_label(path)
        stored = np.array(image)
        # All channels but alpha are equal.
        assert np.array_equal(label, stored if stored.ndim == 2 else stored[..., 0])
        fits = other == height and bool(np.isin(label, [0, 1, 2, 255]).all())
        try:
            check_label(label, path, vocabulary, (other, width))
        except DatasetError:
            assert not fits
        else:
            assert fits

    return inputs, call


CLASS_LIST = {
    "format": 1,
    "name": "toy",
    "ignore_label": 255,
    "classes": [
        {"id": 0, "name": "cat", "prompts": ["cat", "kitten"], "color": [1, 2, 3]},
        {"id": 1, "name": "dog"},
        {"id": 7, "name": "grass", "prompts": []},
    ],
    "default_split": "a",
    "splits": {"a": {"unseen": ["dog"]}, "b": {"seen": ["cat", "dog"], "unseen": ["grass"]}},
}
CLASS_KEYS = ("format", "name", "classes", "id", "prompts", "color", "splits", "unseen", "seen")


def read_class_list(space: Space, tree: Any) -> None:
    path = space.write("classes.json", json.dumps(tree, ensure_ascii=bool(len(str(tree)) % 2)))
    for split in ("", "b"):
        try:
            vocabulary = Vocabulary.from_json(path, split)
        except TagCLIPError as error:
            assert str(error).startswith(str(path)) and len(str(error).splitlines()) == 1
            continue
        # What is accepted can be used.
        assert len(vocabulary.label_lut()) == max(vocabulary.label_lut().shape)
        assert len(vocabulary.colors) == len(vocabulary.prompts) == len(vocabulary)
        vocabulary.fingerprint.encode()
        "".join(vocabulary.names).encode()


@target
def class_list_values(space: Space) -> Target:
    """Any json."""
    return json_values(CLASS_KEYS), lambda tree: read_class_list(space, tree)


@target
def class_list_changes(space: Space) -> Target:
    """A class list in which some values are others."""
    inputs = changed_tree(CLASS_LIST, json_values(CLASS_KEYS))
    return inputs, lambda tree: read_class_list(space, tree)


@target
def manifest_changes(space: Space) -> Target:
    """The record of a prepare script."""
    vocabulary = Vocabulary.from_names(["cat", "dog"])
    path = space.folder / "labels.json"
    sources = (LabelOrigin("masks", "voc2012"),)
    LabelManifest.of(vocabulary, 3, 3, True, sources).write(path)
    whole = json.loads(path.read_text())

    def call(tree: Any) -> None:
        space.write("labels.json", json.dumps(tree))

        def use() -> None:
            found = LabelManifest.read(path)
            found.check_classes(vocabulary, path, "mend it")
            found.check_sources(sources, path, "mend it")

        tried(use)

    return changed_tree(whole, json_values()), call
