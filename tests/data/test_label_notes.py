"""Label files of several class lists in one folder are noticed by what they say of themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.pictures import huge_png
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tagclip.data.label_notes import OtherWords, common_words, refuse_other_words, words_in
from tagclip.errors import DatasetError
from tagclip.structures.vocabulary import Vocabulary
from tagclip.structures.vocabulary_class import ClassEntry
from tagclip.utils.png_notes import read_notes
from tagclip.visualization.panels import save_png

NAMES = {0: "cat", 1: "Dining table"}
ONE, TWO = "1" * 64, "2" * 64
Words = dict[int, str] | None


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., list[Path]]:
    def call(*notes: tuple[str, Words]) -> list[Path]:
        """Files of these runs, with these words."""
        picture = np.zeros((2, 3), np.uint8)
        return [
            save_png(tmp_path / f"{n}.png", picture, f"{run} {n} 0 x y" if run else "", words=words)
            for n, (run, words) in enumerate(notes)
        ]

    return call


@pytest.mark.parametrize(
    "notes",
    [
        # Two models, one class list.
        ((ONE, NAMES), (TWO, NAMES)),
        # Each names the classes that occur in it.
        ((ONE, {0: "cat"}), (ONE, {1: "Dining table"}), (ONE, {})),
        ((ONE, {0: "CAT"}), (TWO, {1: "dining  table"})),
        # Of an earlier version: of one run, or of what was segmented again by this one.
        ((ONE, None), (ONE, None)),
        ((ONE, None), (ONE, NAMES)),
        ((TWO, NAMES), (ONE, NAMES), (ONE, None)),
        # Frames of a video, and what says nothing.
        (("", NAMES), ("", NAMES), ("", None)),
        (("", None), (ONE, None)),
    ],
)
def test_labels_of_one_class_list_are_taken(write: Callable, notes: tuple) -> None:
    files = write(*notes)
    refuse_other_words(files, NAMES)
    refuse_other_words(reversed(files), NAMES)
    refuse_other_words([*files, files[0].with_name("none.npy")], NAMES)


@pytest.mark.parametrize(
    "notes",
    [
        ((ONE, NAMES), (TWO, {0: "Dining table", 1: "cat"})),
        (("", {0: "cat"}), ("", {1: "cat", 0: "dog"})),
        ((ONE, None), (TWO, None)),
        ((ONE, None), (TWO, NAMES)),
        ((ONE, None), ("", {})),
    ],
)
def test_labels_of_several_class_lists_are_refused(write: Callable, notes: tuple) -> None:
    files = write(*notes, ("", None))
    with pytest.raises(DatasetError, match="run segment again with --overwrite, or put them"):
        refuse_other_words(files, NAMES)
    with pytest.raises(DatasetError) as caught:
        common_words(files)
    assert {text for text in map(str, files[:2]) if text in str(caught.value)} == {
        *map(str, files[:2])
    }


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({0: "cat", 1: "dog"}, "1 = 'Dining table' ('dog' here)"),
        ({7: "dining  table", 0: "CAT"}, "1 = 'Dining table' (no class here)"),
        # Of one of which nothing is known.
        ({0: "dining table", 1: "cat"}, "0 = 'cat' ('dining table' here), 1 = 'Dining table'"),
    ],
)
def test_labels_of_other_classes_are_refused(
    write: Callable, names: dict[int, str], said: str
) -> None:
    (_, file) = write((ONE, {}), (ONE, NAMES))
    with pytest.raises(DatasetError) as caught:
        refuse_other_words([file.with_name("0.png"), file], names)
    assert str(caught.value).startswith(f"{file}: found a label file that was made with other")
    assert said in str(caught.value)


def test_what_the_files_say_in_all(write: Callable) -> None:
    files = write((ONE, {3: "sky"}), (TWO, {0: "cat"}), ("", None))
    assert common_words(files) == {3: "sky", 0: "cat"}


@pytest.mark.parametrize(
    ("names", "count", "has_moved"),
    [
        # In another spelling, and with more of them.
        ({1: "dining  table", 0: "CAT", 2: "sky"}, 0, False),
        # Maybe new names of the same classes.
        ({0: "Katze", 1: "Tisch"}, 2, False),
        ({0: "cat", 1: "Tisch"}, 1, False),
        # A list with one more class in front.
        ({0: "background", 1: "cat", 2: "dining table"}, 2, True),
        ({0: "sky", 1: "cat"}, 2, True),
    ],
)
def test_other_words_or_other_ids(names: dict[int, str], count: int, has_moved: bool) -> None:
    other = OtherWords(NAMES, names)
    assert (len(other.names), bool(other), other.has_moved) == (count, count > 0, has_moved)


@pytest.mark.parametrize("dtype", [np.int8, np.int64])
def test_words_of_the_classes_that_occur(dtype: type) -> None:
    rows = (3, "cat"), (900, "sky"), (0, "dining table")
    vocabulary = Vocabulary("custom", tuple(ClassEntry(*row) for row in rows))
    labels = np.array([[-1, 1, 1], [2, -1, 2]], dtype)
    assert words_in(labels, vocabulary) == {900: "sky", 0: "dining table"}
    assert words_in(labels.clip(max=-1), vocabulary) == {}


def test_words_survive_the_file(tmp_path: Path) -> None:
    words = {0: "Tür, „blau“", 65535: "犬 " * 400, 7: '"'}
    path = save_png(tmp_path / "a.png", np.zeros((2, 3), np.uint8), "a note", words=words)
    assert read_notes(path) == ("a note", words)


@pytest.mark.parametrize("text", ["0" * 16, "[1]", "{", '{"a": "cat"}', "[" * 9000])
def test_damaged_words_say_nothing(tmp_path: Path, text: str) -> None:
    info = PngInfo()
    info.add_text("TagCLIP classes", text)
    Image.new("L", (3, 2)).save(tmp_path / "a.png", pnginfo=info)
    assert read_notes(tmp_path / "a.png") == ("", None)


def test_what_another_program_wrote_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("L", (3, 2)).save(path)
    assert read_notes(path) == read_notes(tmp_path) == ("", None)
    path.write_bytes(b"damaged")
    assert read_notes(path) == ("", None)
    path.write_bytes(huge_png(20000))
    assert read_notes(path) == ("", None)
