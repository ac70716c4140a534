"""A prediction against loops over its pixels, against what the demo writes, and as a dict."""

from __future__ import annotations

import copy
import io
import json
import pickle
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from helpers.html import Page
from helpers.pages import find
from helpers.paths import REPOSITORY
from helpers.pictures import picture
from helpers.tiny_checkpoint import save_tiny
from helpers.tiny_run import load_tool
from PIL import Image
from pycocotools.coco import COCO

from tagclip import Prediction, TagCLIPPredictor, Vocabulary
from tagclip.errors import ConfigError

VOCABULARY = Vocabulary.from_names(["cat", "dog", "red ball", "sky"], seen=["cat", "sky"])
OTHER_SHARE = 1 / 4
WORDS = ["cat", "zebra", "sky"]


def predicted(
    height: int = 40,
    width: int = 56,
    vocabulary: Vocabulary = VOCABULARY,
    labels: np.ndarray | None = None,
) -> Prediction:
    """Other above; below, the first class on the left and the second on the right."""
    if labels is None:
        labels = np.zeros((height, width), np.int16)
        labels[:, width // 2 :] = 1
        labels[: int(height * OTHER_SHARE)] = -1
    maps = np.random.default_rng(0).random((2, height, width), np.float32)
    scores, trusty = torch.from_numpy(maps).half()
    outputs = {
        "sem_seg_labels": torch.from_numpy(labels), "sem_seg_scores": scores, "trusty": trusty,
    }  # fmt: skip
    return Prediction(outputs, picture(height, width)[:, :, ::-1], vocabulary)


def test_shares_equal_a_count_pixel_by_pixel() -> None:
    labels = np.random.default_rng(1).integers(-1, 3, (37, 53)).astype(np.int16)
    result = predicted(37, 53, labels=labels)
    counts = dict.fromkeys([*VOCABULARY.names, None], 0)
    for row in labels.tolist():
        for value in row:
            counts[None if value < 0 else VOCABULARY.names[value]] += 1
    assert result.other == counts.pop(None) / (37 * 53)
    assert result.share == {name: count / (37 * 53) for name, count in counts.items()}
    assert result.share["sky"] == 0
    assert [tuple(entry) for entry in result.classes] == [
        (name, name in ("cat", "sky"), tuple(VOCABULARY.colors[k].tolist()), result.share[name])
        for k, name in enumerate(VOCABULARY.names)
    ]


def test_a_class_may_be_called_other() -> None:
    result = predicted(vocabulary=Vocabulary.from_names(["other", "dog"], seen=[True, False]))
    assert result.share == {"other": 0.375, "dog": 0.375} and result.other == OTHER_SHARE


def test_it_is_the_dict_of_before() -> None:
    result = predicted()
    assert isinstance(result, Mapping) and isinstance(result, dict)
    assert list(result) == ["sem_seg_labels", "sem_seg_scores", "trusty", "class_names"]
    assert result["class_names"] == VOCABULARY.names and "top_labels" not in result
    for key, value in (("labels", "sem_seg_labels"), ("scores", "sem_seg_scores")):
        assert getattr(result, key) is result[value]
    assert result.trusty is result["trusty"]
    assert {**result} == dict(result) == dict(result.items()) and len(result | {"more": 1}) == 5
    assert result.pop("trusty") is not None and "trusty" not in result and result.trusty is None


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda r: pickle.loads(dumps(r))])
def test_copies_are_predictions(copied: Any) -> None:
    result = predicted()
    other = copied(result)
    assert type(other) is Prediction and other.keys() == result.keys()
    assert torch.equal(other.labels, result.labels) and repr(other) == repr(result)
    assert other.overlay().tobytes() == result.overlay().tobytes()


def dumps(result: Prediction) -> bytes:
    return pickle.dumps(result)


def test_it_is_shown_in_one_line() -> None:
    assert repr(predicted()) == (
        "Prediction(56x40 pixels, 4 classes: cat 37.5%, dog 37.5%, other 25.0%)"
    )
    labels = np.arange(8, dtype=np.int16).reshape(1, 8) // 2
    assert repr(predicted(1, 8, labels=labels)) == (
        "Prediction(8x1 pixels, 4 classes: cat 25.0%, dog 25.0%, red ball 25.0%, ...)"
    )
    one = Vocabulary.from_names(["cat"], seen=[True])
    assert repr(predicted(1, 1, one, np.zeros((1, 1), np.int16))) == (
        "Prediction(1x1 pixels, 1 class: cat 100.0%)"
    )


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_an_overlay_has_the_colours_of_the_classes(alpha: float) -> None:
    result = predicted(120, 160)
    drawn = np.asarray(result.overlay(alpha, names=False)).astype(float)
    assert drawn.shape == (120, 160, 3)
    rgb = result.image[:, :, ::-1].astype(float)
    for k, columns in ((0, slice(0, 80)), (1, slice(81, 160))):
        expected = (1 - alpha) * rgb[31:, columns] + alpha * VOCABULARY.colors[k]
        assert np.abs(drawn[31:, columns] - expected).max() < 0.51
    assert (drawn[30] == 0).all() and (drawn[30:, 80] == 0).all()
    assert (np.asarray(result.overlay(alpha)) != drawn).any()


@pytest.mark.parametrize(
    "options",
    [
        *({"alpha": value} for value in (1.1, -1, float("nan"))),
        *({"size": value} for value in (0, 9.5, True, 32768, 10**9)),
    ],
)
def test_an_overlay_of_odd_values_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="^(alpha|size): found .*, expected .*$"):
        predicted().overlay(**options)


def test_the_image_is_not_copied(predictor: TagCLIPPredictor) -> None:
    bgr = picture()
    result = predictor(bgr)
    assert np.shares_memory(result.image, bgr) and result.file == ""
    bgr[:] = 0
    assert not np.asarray(result.overlay(0.0, names=False)).any()


@pytest.fixture
def weights(tiny_cfg: CfgNode, tmp_path: Path) -> Path:
    return save_tiny(tiny_cfg, tmp_path / "output")


@pytest.fixture
def predictor(weights: Path) -> TagCLIPPredictor:
    predictor = TagCLIPPredictor.from_checkpoint(weights)
    predictor.set_vocabulary(WORDS, context=["dog"])
    return predictor


def test_files_are_those_of_the_demo(
    predictor: TagCLIPPredictor, weights: Path, tmp_path: Path
) -> None:
    """Pixel by pixel, row by row; an overlay is the demo's panel."""
    image = tmp_path / "a.png"
    Image.fromarray(picture()).save(image)
    demo = load_tool(REPOSITORY / "tools" / "demo.py")
    options = f"--weights {weights} --output {tmp_path}/demo --save-labels --json {tmp_path}/d.json"
    words = ["--vocab", ", ".join(WORDS), "--context", "dog", "--input", str(image)]
    assert demo.main(demo.parse_args([*options.split(), *words])) == 0
    result = predictor(image)
    assert result.file == str(image) and 0 < result.other < 1
    for name in ("a.png", "a_labels.png", "b/c/a.json"):
        assert result.save(tmp_path / "own" / name) == tmp_path / "own" / name
    for name in ("a.png", "a_labels.png"):
        own, theirs = (Image.open(tmp_path / folder / name) for folder in ("own", "demo"))
        assert own.mode == theirs.mode and own.tobytes() == theirs.tobytes(), name
        assert own.getpalette() == theirs.getpalette()
        is_label, text = name == "a_labels.png", own.info.get("TagCLIP classes")
        assert text == theirs.info.get("TagCLIP classes") and (text is not None) == is_label
    page, panel = (
        np.array(Image.open(tmp_path / "demo/a.png")),
        np.asarray(result.overlay(size=512)),
    )
    assert len(find(page[: 40 + len(panel), 500:1060], panel)) == 1
    own = COCO(tmp_path / "own/b/c/a.json")
    theirs = json.loads((tmp_path / "d.json").read_text())
    assert own.dataset["annotations"] == theirs["annotations"]
    assert own.dataset["categories"] == theirs["categories"]
    (row,) = own.dataset["images"]
    assert row.items() <= theirs["images"][0].items() and row["file_name"] == str(image)
    for annotation in own.anns.values():
        mask = own.annToMask(annotation) == 1
        assert (result.labels.numpy()[mask] == annotation["category_id"]).all()


def test_a_json_without_an_image_file_is_named_after_itself(tmp_path: Path) -> None:
    path = predicted().save(tmp_path / "street.JSON")
    assert json.loads(path.read_text())["images"][0]["file_name"] == "street"


@pytest.mark.parametrize("name", ["a.jpg", "a", "a.tar.gz", ".png"])
def test_other_names_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError) as error:
        predicted().save(tmp_path / name)
    suffix = Path(name).suffix
    assert str(error.value) == (
        f"{tmp_path / name}: found the suffix {suffix!r}, expected NAME.png (the picture), "
        "NAME_labels.png (class ids) or NAME.json (COCO); name one of them"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.png", "a_labels.png", "a.json"])
def test_what_cannot_be_written_leaves_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / name).mkdir()
    for path, reason in (
        (tmp_path / "file" / name, "Not a directory"),
        (tmp_path / name, "Is a directory"),
        # Python 3.13 says more.
        (tmp_path / f"\0{name}", ".*embedded null (byte|character).*"),
    ):
        with pytest.raises(ConfigError) as error:
            predicted().save(path)
        shown = str(path).replace("\0", "\\x00")
        start, end = f"{shown}: cannot be written (", "); free space or choose another folder"
        assert re.fullmatch(re.escape(start) + reason + re.escape(end), str(error.value))
    assert {path.name for path in tmp_path.iterdir()} == {"file", name}
    assert (tmp_path / "file").read_text() == "kept"


def test_a_notebook_shows_pictures_and_shares() -> None:
    """Self-contained; a class that is not on the image is named apart, "other" is explained."""
    page = Page(predicted()._repr_html_())
    words = " ".join(" ".join(page.words).split())
    for part in (
        "cat 37.5 % ★ dog 37.5 % other 25.0 %",
        "2 of 4 classes without a pixel ★ red ball, sky",
        "★ counts as unseen",
        "other: a class that is not shown won, or none was likely enough",
        "0: unseen 0.5 1: seen",
    ):
        assert part in words
    sizes = [Image.open(io.BytesIO(content)).size for content in page.pictures]
    assert sizes == [(352, 251)] * 3
    styles = " ".join(value for _, key, value in page.attributes if key == "style")
    for color in VOCABULARY.colors[:2]:
        assert f"rgb({', '.join(map(str, color))})" in styles
    result = predicted()
    del result["trusty"]
    page = Page(result._repr_html_())
    assert len(page.pictures) == 2 and "1: seen" not in " ".join(page.words)


def test_names_are_text_in_a_notebook() -> None:
    names = ["<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "</style>&amp;"]
    page = Page(predicted(vocabulary=Vocabulary.from_names(names, [True] * 3))._repr_html_())
    assert page.tags == {"div", "img", "span", "details", "summary"} and len(page.pictures) == 3
    assert {*names[:2]} <= {*map(str.strip, page.words)}
    assert any(names[2] in word for word in page.words)


@pytest.mark.parametrize("shape", [(3000, 4000), (1, 900), (2000, 2)])
def test_a_notebook_stays_small(shape: tuple[int, int]) -> None:
    html = predicted(*shape)._repr_html_()
    assert len(html) < 300_000 and len(Page(html).pictures) == 3


def test_all_of_many_classes_are_shown() -> None:
    names = [f"class {k}" for k in range(300)]
    labels = np.arange(40 * 56, dtype=np.int16).reshape(40, 56) % 150
    vocabulary = Vocabulary.from_names(names, seen=[True] * 300)
    words = " ".join(Page(predicted(40, 56, vocabulary, labels)._repr_html_()).words)
    assert all(words.count(f"{name}\n") + words.count(f"{name} ") for name in names[:150])
    assert "150 of 300 classes without a pixel" in words and names[299] in words


def test_drawing_waits_until_something_is_drawn() -> None:
    code = (
        "import sys, tagclip.predictor\n"
        "late = ('tagclip.visualization', 'tagclip.evaluation', 'jinja2')\n"
        "print([name for name in late if name in sys.modules])"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "[]\n"
