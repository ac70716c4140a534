"""What label values give away: raw ids, palettes read as gray, shifts, other ignore values."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tagclip.data.datasets.builtin import vocabulary_json
from tagclip.data.validation.findings import list_findings
from tagclip.data.validation.scan import DatasetScan, Sample, SampleScan
from tagclip.structures.vocabulary import ClassEntry, Vocabulary


def _scan_of(labels: Sequence[np.ndarray], vocabulary: Vocabulary) -> DatasetScan:
    scan = DatasetScan("toy", vocabulary)
    for index, label in enumerate(labels):
        values, pixels = np.unique(label, return_counts=True)
        scan.add(
            SampleScan(
                Sample(str(index), None, f"{index}.png"),
                label_size=label.shape[::-1],
                label_mode="L",
                counts=dict(zip(values.tolist(), pixels.tolist(), strict=True)),
            )
        )
    return scan


def _voc(rng: np.random.Generator) -> np.ndarray:
    """A label as VOC distributes it: background 0, objects 1..20, border 255."""
    label = np.zeros((20, 20), dtype=np.uint8)
    for _ in range(2):
        y, x = rng.integers(0, 14, 2)
        label[y : y + 6, x : x + 6] = 255
        label[y + 1 : y + 5, x + 1 : x + 5] = rng.integers(1, 21)
    return label


def _many(make: Callable[[np.random.Generator], np.ndarray], count: int = 80) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [make(rng) for _ in range(count)]


def _problems(
    labels: Sequence[np.ndarray], vocabulary: Vocabulary, kind: str = "diagnosis"
) -> list[str]:
    found = list_findings(_scan_of(labels, vocabulary), "mend it")
    return [problem.title for problem in found if problem.kind == kind]


def _palette_as_gray(label: np.ndarray) -> np.ndarray:
    """What a reader makes of a palette file that it converts to gray; Pillow is the reference."""
    palette = np.zeros((256, 3), dtype=np.uint8)
    # VOC's palette, written out from its definition for the first classes and the border.
    palette[:21] = [
        (0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128),
        (0, 128, 128), (128, 128, 128), (64, 0, 0), (192, 0, 0), (64, 128, 0), (192, 128, 0),
        (64, 0, 128), (192, 0, 128), (64, 128, 128), (192, 128, 128), (0, 64, 0), (128, 64, 0),
        (0, 192, 0), (128, 192, 0), (0, 64, 128),
    ]  # fmt: skip
    palette[255] = (224, 224, 192)
    image = Image.fromarray(label)
    image.putpalette(palette.tobytes())
    return np.asarray(image.convert("L"))


def _reduce(label: np.ndarray) -> np.ndarray:
    """reduce_zero_label: 0 becomes 255, the classes move down by one, 255 stays."""
    return np.where(np.isin(label, (0, 255)), 255, label - 1).astype(np.uint8)


def test_raw_voc_palette_and_gray() -> None:
    voc20 = Vocabulary.from_json(vocabulary_json("voc20"))
    raw = _many(_voc)
    (title,) = _problems(raw, voc20)
    assert title.startswith("raw ids of voc2012 (1..20) instead of those of voc20 (0..19)")
    (title,) = _problems([_palette_as_gray(label) for label in raw], voc20)
    assert title.startswith("palette colours were saved as gray")
    assert _problems([_reduce(label) for label in raw], voc20) == []


def test_single_bad_file_does_not_change_the_diagnosis() -> None:
    voc20 = Vocabulary.from_json(vocabulary_json("voc20"))
    raw = _many(_voc)
    blurred = Image.fromarray(raw[0]).resize((33, 33), Image.BILINEAR)
    (title,) = _problems([*raw, np.asarray(blurred)], voc20)
    assert title.startswith("raw ids of voc2012")
    good = [_reduce(label) for label in _many(_voc, 300)]
    assert _problems([*good, np.asarray(blurred)], voc20) == []
    assert _problems([*good, np.asarray(blurred)], voc20, "unknown") != []


def test_raw_coco_with_and_without_its_last_classes(repository: Path) -> None:
    coco = Vocabulary.from_json(vocabulary_json("coco_stuff171"))
    holes = [11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90]
    raw = np.setdiff1d(np.arange(182), holes).astype(np.uint8)
    assert len(raw) == 171
    labels = _many(lambda rng: rng.choice(raw, (20, 20)))
    (title,) = _problems(labels, coco)
    assert title.startswith("raw ids of coco_stuff (0..181) instead of those of coco_stuff171")
    low = raw[raw <= 170]
    labels = _many(lambda rng: rng.choice(low, (20, 20)))
    assert _problems(labels, coco) == []
    assert any("the ids may be raw" in title for title in _problems(labels, coco, "suspicion"))


def test_order_of_zegformer_is_a_hint_unless_verified() -> None:
    coco = Vocabulary.from_json(vocabulary_json("coco_stuff171"))
    scan = _scan_of(_many(lambda rng: rng.integers(0, 171, (20, 20)).astype(np.uint8)), coco)
    (hint,) = list_findings(scan, "mend it")
    assert not hint.is_problem and "coco_stuff_seen_first" in hint.title
    assert "contact sheet" in hint.advice
    assert list_findings(scan, "mend it", verified=True) == []


def _five(lowest: int, highest: int, ignored: int | None = None) -> list[np.ndarray]:
    """Labels with all ids of a range and a tenth of ignored pixels; no value dominates."""

    def make(rng: np.random.Generator) -> np.ndarray:
        label = rng.integers(lowest, highest + 1, (20, 20))
        if ignored is not None:
            label[:2] = ignored
        return label.astype(np.int32)

    return _many(make, 20)


def _dominate(labels: Sequence[np.ndarray], value: int) -> list[np.ndarray]:
    labels = [label.copy() for label in labels]
    for label in labels:
        label[8:] = value
    return labels


FIVE = Vocabulary.from_names(["a", "b", "c", "d", "e"], seen=["a", "b", "c", "d"])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (_dominate(_five(0, 5, 255), 0), "background left in: 0 dominates and 5 is one id too"),
        (_five(1, 5, 255), "shifted by one: the ids are 1..5 instead of 0..4"),
        (_five(0, 5, 255), "one id too many: 0..5 instead of 0..4"),
        (_five(0, 4, 254), "254 instead of 255 for unlabelled pixels"),
        (_five(40, 44, 255), "the labels are of another class list"),
        (_five(0, 200), "values outside the class list: brightnesses of colours, or labels"),
        (_five(-3, 4), "the labels are of another class list"),
        (_five(300, 304, 255), "the labels are of another class list"),
    ],
)
def test_values_outside_the_class_list_are_explained(
    labels: list[np.ndarray], message: str
) -> None:
    titles = _problems(labels, FIVE)
    assert message in titles[0]


@pytest.mark.parametrize(
    ("ignore_label", "first_id", "value"), [(0, 1, 255), (254, 0, 255), (255, 1, 0)]
)
def test_other_ignore_value(ignore_label: int, first_id: int, value: int) -> None:
    classes = tuple({"id": first_id + index, "name": name} for index, name in enumerate(FIVE.names))
    vocabulary = Vocabulary(
        "five", tuple(ClassEntry(**entry) for entry in classes), ignore_label=ignore_label
    )
    labels = _five(first_id, first_id + 4, value)
    (title,) = _problems(labels, vocabulary)
    assert title == f"{value} may mean unlabelled, but the ignore label is {ignore_label}"


def test_no_labelled_pixel_at_all() -> None:
    labels = [np.full((4, 4), 255, dtype=np.uint8)] * 3
    assert _problems(labels, FIVE) == ["none of 3 label files has a pixel of any class"]
    assert _problems(labels, FIVE, "all_ignored") != []


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (_dominate(_five(0, 4), 0), "0 may mean background or unlabelled"),
        (_dominate(_five(1, 4), 255), "only 0 ('a') has no pixel and"),
        (_dominate(_five(0, 3), 255), "only 4 ('e') has no pixel and"),
    ],
)
def test_suspicions_are_notes(labels: list[np.ndarray], message: str) -> None:
    problems = list_findings(_scan_of(labels, FIVE), "mend it")
    (suspicion,) = [problem for problem in problems if problem.kind == "suspicion"]
    assert message in suspicion.title and not suspicion.is_problem
    assert suspicion.advice


def test_a_colour_does_not_mean_unlabelled() -> None:
    scan = _scan_of(_dominate(_five(0, 4), 0), FIVE)
    scan.modes["label"] = Counter(RGB=scan.labels)
    # Three equal channels are ids.
    assert [f.kind for f in list_findings(scan, "mend it")] == ["suspicion"]
    entries = tuple(replace(e, color=(e.id, 9, 9)) for e in FIVE.classes)
    scan.vocabulary = replace(FIVE, classes=entries)
    assert list_findings(scan, "mend it") == []


def test_gray_files_among_coloured_ones_are_a_suspicion() -> None:
    scan = _scan_of(_five(0, 4), FIVE)
    scan.modes["label"]["RGB"] = 3
    (finding,) = [f for f in list_findings(scan, "mend it") if f.kind == "suspicion"]
    assert finding.title.startswith("3 label files are colours, 20 are gray values")
    assert '"labels": "colors"' in finding.advice and not finding.is_problem
    scan.vocabulary = replace(FIVE, labels="ids")
    assert list_findings(scan, "mend it") == []


MASKS = [np.array([[0, 255, 0, 0]])] * 3


@pytest.mark.parametrize(
    ("names", "ignore_label", "remedy"),
    [
        (["sand", "ball"], 255, """"ids": [1, 255] for 'ball' and "ignore_label": 254"""),
        (["sand", "ball"], 254, """"ids": [1, 255] for 'ball'"""),
        (
            ["ball"],
            255,
            """add the class {"id": 0, "name": "background"} and "ignore_label": 254""",
        ),
    ],
)
def test_masks_of_0_and_255(names: list[str], ignore_label: int, remedy: str) -> None:
    """A problem that says which json line gives the foreground its class."""
    vocabulary = replace(Vocabulary.from_names(names), ignore_label=ignore_label)
    found = list_findings(_scan_of(MASKS, vocabulary), "mend it")
    (problem,) = [finding for finding in found if finding.kind == "diagnosis"]
    assert problem.is_problem and problem.title.startswith("all pixels are 0 or 255")
    assert problem.advice.endswith(remedy)


def test_masks_of_0_and_255_with_a_class_of_both_are_none() -> None:
    entries = (ClassEntry(0, "sand"), ClassEntry(1, "ball", ids=(1, 255)))
    scan = _scan_of(MASKS, Vocabulary("v", entries, ignore_label=254))
    assert list_findings(scan, "mend it") == []
    assert (scan.total((1, 255)), scan.files((1, 255))) == (3, 3)


@pytest.mark.parametrize("quality", [75, 90, 95, 100])
def test_masks_blurred_by_jpeg_are_named(quality: int) -> None:
    mask = np.zeros((64, 64), np.uint8)
    for x in range(64):
        mask[20 + x // 5 : 50, x] = 255
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "JPEG", quality=quality)
    label = np.array(Image.open(file))
    (title,) = _problems([label] * 3, Vocabulary.from_names(["sand", "ball"]))
    assert title == "masks of 0 and 255 with blurred values"
    many = Vocabulary.from_names([f"c{i}" for i in range(256)])
    assert _problems([label] * 3, many) == []


def test_few_classes_with_two_kinds_of_unlabelled_pixels_are_no_jpeg() -> None:
    label = np.array([[0, 1, 2, 3, 254, 255]])
    (title,) = _problems([label] * 3, Vocabulary.from_names(["sand", "ball", "board", "sea"]))
    assert title.startswith("254 instead of 255 for unlabelled pixels")


def test_an_unlabelled_last_value_is_recognized() -> None:
    """CamVid: 11 classes, and 11 for what has none."""
    camvid = Vocabulary.from_names([f"c{i}" for i in range(11)])
    scan = _scan_of(_five(0, 11), camvid)
    (problem,) = [f for f in list_findings(scan, "mend it") if f.kind == "diagnosis"]
    assert problem.title.startswith("one id too many: 0..11 instead of 0..10; the last is unlab")
    assert problem.advice.startswith('if 11 means unlabelled, say "ignore_label": [255, 11] in')


def test_a_frequent_class_beside_ignored_pixels_is_no_suspicion() -> None:
    labels = _dominate(_five(0, 4, 255), 0)
    assert list_findings(_scan_of(labels, FIVE), "mend it") == []


def test_background_that_is_a_class_is_no_suspicion() -> None:
    names = ["background", *FIVE.names[1:]]
    labels = _dominate(_five(0, 4), 0)
    assert list_findings(_scan_of(labels, Vocabulary.from_names(names)), "mend it") == []


def test_absent_classes_are_named() -> None:
    titles = _problems(_five(0, 3, 255), FIVE, "absent")
    assert titles[0] == "1 of 5 classes have no pixel: 'e'"
    assert titles[1].startswith("no pixel of the 1 unseen classes: enough for inductive training")


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_valid_labels_are_no_problem(data: st.DataObject) -> None:
    """Whatever the class list and the frequencies: values of the class list are never refused."""
    size = data.draw(st.integers(1, 30))
    ids = data.draw(st.lists(st.integers(0, 300), min_size=size, max_size=size, unique=True))
    ignored = data.draw(st.integers(0, 301).filter(lambda value: value not in ids))
    classes = tuple(ClassEntry(value, f"class {value}") for value in ids)
    vocabulary = Vocabulary("any", classes, ignore_label=ignored)
    value = st.sampled_from([*ids, ignored])
    rows = data.draw(st.lists(st.lists(value, min_size=6, max_size=6), min_size=1, max_size=12))
    labels = [np.array(row).reshape(2, 3) for row in rows] + [np.array([[ids[0]]])]
    problems = list_findings(_scan_of(labels, vocabulary), "mend it")
    assert [problem for problem in problems if problem.is_problem] == []
