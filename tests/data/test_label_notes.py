"""Label files of several class lists in one folder are noticed by what they say of themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagclip.data.label_notes import classes_note, refuse_mixed
from tagclip.errors import DatasetError
from tagclip.structures.vocabulary import Vocabulary
from tagclip.structures.vocabulary_class import ClassEntry
from tagclip.visualization.panels import read_notes, save_png

WORDS = Vocabulary.from_names(["cat", "Dining table"])
OURS, OTHERS = (classes_note(v) for v in (WORDS, Vocabulary.from_names(["dining table", "cat"])))
ONE, TWO = "1" * 64, "2" * 64


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., list[Path]]:
    def call(*notes: tuple[str, str]) -> list[Path]:
        """Files with these runs and classes."""
        picture = np.zeros((2, 3), np.uint8)
        return [
            save_png(
                tmp_path / f"{n}.png", picture, f"{run} {n} 0 x y" if run else "", classes=classes
            )
            for n, (run, classes) in enumerate(notes)
        ]

    return call


@pytest.mark.parametrize(
    "notes",
    [
        # Two models, one class list.
        ((ONE, OURS), (TWO, OURS)),
        # Of an earlier version: of one run, or of what was segmented again by this one.
        ((ONE, ""), (ONE, "")),
        ((ONE, ""), (ONE, OURS)),
        ((TWO, OURS), (ONE, OURS), (ONE, "")),
        # Frames of a video, and what says nothing.
        (("", OURS), ("", OURS), ("", "")),
        (("", ""), (ONE, "")),
    ],
)
def test_labels_of_one_class_list_are_taken(write: Callable, notes: tuple) -> None:
    files = write(*notes)
    refuse_mixed(files, WORDS)
    refuse_mixed(reversed(files), WORDS)
    refuse_mixed([*files, files[0].with_name("none.npy")])


@pytest.mark.parametrize(
    "notes",
    [
        ((ONE, OURS), (TWO, OTHERS)),
        (("", OURS), ("", OTHERS)),
        ((ONE, ""), (TWO, "")),
        ((ONE, ""), (TWO, OURS)),
    ],
)
def test_labels_of_several_class_lists_are_refused(write: Callable, notes: tuple) -> None:
    files = write(*notes, ("", ""))
    for vocabulary in (None, WORDS):
        with pytest.raises(DatasetError, match="run segment again with --overwrite, or put them"):
            refuse_mixed(files, vocabulary)
    with pytest.raises(DatasetError) as caught:
        refuse_mixed(files)
    assert {text for text in map(str, files[:2]) if text in str(caught.value)} == {
        *map(str, files[:2])
    }


def test_labels_of_other_classes_are_refused(write: Callable) -> None:
    (file,) = write((ONE, OURS))
    rows = (7, "dining  table"), (0, "CAT")
    other_ids = Vocabulary("custom", tuple(ClassEntry(*row) for row in rows))
    for vocabulary in (Vocabulary.from_names(["cat", "dog"]), other_ids):
        with pytest.raises(DatasetError, match=f"^{file}: found a label file that segment made"):
            refuse_mixed([file], vocabulary)
    refuse_mixed([file])
    # Names in another spelling, order, colour or prompt mean the same.
    rows = (1, "dining  table", ("a table",), (1, 2, 3)), (0, "CAT")
    refuse_mixed([file], Vocabulary("custom", tuple(ClassEntry(*row) for row in rows)))


def test_what_another_program_wrote_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("L", (3, 2)).save(path)
    assert read_notes(path) == read_notes(tmp_path) == ("", "")
    path.write_bytes(b"damaged")
    assert read_notes(path) == ("", "")
