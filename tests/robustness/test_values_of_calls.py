"""Values of the wrong kind or size in calls from Python: one line that names them, no traceback."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from helpers.tiny_checkpoint import save_tiny
from helpers.tiny_run import changed
from PIL import Image

from tagclip import TagCLIPPredictor, Vocabulary, load_config
from tagclip.checkpoint import checkpoint_config
from tagclip.config import check_config
from tagclip.data.read_ahead import read_ahead
from tagclip.errors import ConfigError, DatasetError, TagCLIPError, VocabularyError
from tagclip.modeling.inference.fusion import InferenceSettings
from tagclip.modeling.inference.gate import Gate
from tagclip.modeling.losses.seg_loss import SegLoss
from tagclip.modeling.self_training import SelfTraining

NO_LISTS = [None, 5, 1.5, math.nan, True, b"cat", object(), np.array(3), {"a", "b"}]
NO_PATHS = [None, 5, math.nan, True, b"cat", ["a"], {"a": 1}, object()]
NUMBERS = [math.nan, math.inf, None, "1", True, [1], 1j]


def type_of(value: Any) -> str:
    """Name of a case; a repr may hold an address, or the items of a set in any order."""
    return type(value).__name__


@pytest.fixture
def predictor(tiny_cfg: CfgNode, tmp_path: Path) -> TagCLIPPredictor:
    weights = save_tiny(tiny_cfg, tmp_path / "output")
    return TagCLIPPredictor(changed(tiny_cfg, "MODEL.WEIGHTS", str(weights)))


def refusal(call: Callable[[], Any], kind: type[TagCLIPError]) -> str:
    with pytest.raises(kind) as caught:
        call()
    (line,) = str(caught.value).splitlines()
    return line


@pytest.mark.parametrize("names", NO_LISTS, ids=type_of)
def test_what_is_no_list_of_names(names: Any) -> None:
    line = refusal(lambda: Vocabulary.from_names(names), VocabularyError)
    assert line == f"class names: found {names!r:.80}, expected a list of names"


@pytest.mark.parametrize("names", [[None], [5], [["a"]], ["a", ["b"]], [""], [], [math.nan], "a"])
def test_what_is_no_name(names: Any) -> None:
    line = refusal(lambda: Vocabulary.from_names(names), VocabularyError)
    assert "name" in line and ("expected" in line or "empty" in line)


@pytest.mark.parametrize("names", [{"a": 1, "b": 0}, {0: "a", 1: "b"}, {}], ids=str)
def test_a_mapping_is_no_list_of_names(names: Any) -> None:
    line = refusal(lambda: Vocabulary.from_names(names), VocabularyError)
    assert line == f"class names: found {names!r}, expected a list of names"


@pytest.mark.parametrize("names", [("a", "b"), iter("ab"), (n for n in "ab"), np.array(["a", "b"])])
def test_what_is_a_list_of_names(names: Any) -> None:
    assert Vocabulary.from_names(names).names == ["a", "b"]


@pytest.mark.parametrize("value", NO_LISTS[:-1], ids=type_of)
@pytest.mark.parametrize("field", ["classes", "seen", "more_ignored", "ignore_colors"])
def test_fields_of_a_vocabulary(field: str, value: Any) -> None:
    classes = Vocabulary.from_names(["a", "b"]).classes
    if (field, value) == ("seen", None):
        return
    line = refusal(lambda: Vocabulary("v", **{"classes": classes, field: value}), VocabularyError)
    # The items of bytes are numbers.
    assert f"{field.removesuffix('s')}" in line and "expected" in line
    if field == "seen" and not isinstance(value, bytes):
        calls = (
            lambda: Vocabulary.from_names(["a", "b"], value),
            lambda: Vocabulary.from_names(["a", "b"]).with_seen(value),
        )
        for call in calls:
            assert f"seen: found {value!r:.80}, expected truth" in refusal(call, VocabularyError)


def test_names_are_no_classes() -> None:
    line = refusal(lambda: Vocabulary("v", ("a", "b")), VocabularyError)
    assert "classes: found 'a', expected a list of ClassEntry (Vocabulary.from_names" in line


@pytest.mark.parametrize("path", NO_PATHS, ids=type_of)
def test_what_is_no_path(path: Any) -> None:
    assert f"found {path!r:.80}" in refusal(lambda: Vocabulary.from_json(path), VocabularyError)
    for call in (TagCLIPPredictor.from_checkpoint, TagCLIPPredictor.from_pretrained):
        line = refusal(lambda call=call: call(path), ConfigError)
        assert line == f"path: found {path!r:.80}, expected a text or a pathlib.Path"
    if path is not None:
        assert "expected a text or a path" in refusal(lambda: load_config(path), ConfigError)


@pytest.mark.parametrize("opts", [None, 5, {"SEED": 1}, b"SEED", "SEED 1", [5, 1], [None, 2]])
def test_what_are_no_overrides(opts: Any) -> None:
    for call in (lambda: load_config("", opts), lambda: checkpoint_config("x.pth", opts)):
        line = refusal(call, ConfigError)
        assert line.startswith(f"command line: found {opts!r} as overrides, expected a list of")


@pytest.mark.parametrize("cfg", [None, 5, "model.pth", [], {"SEED": 1}, Path("config.yaml")])
def test_what_is_no_config(cfg: Any) -> None:
    for call in (TagCLIPPredictor, check_config):
        line = refusal(lambda call=call: call(cfg), ConfigError)
        assert line.startswith(f"config: found {cfg!r}, expected what tagclip.load_config returns")


def test_a_config_of_detectron2_alone() -> None:
    line = refusal(lambda: check_config(get_cfg()), ConfigError)
    assert line.startswith("config: found no PROJECTS, expected the keys of tagclip, too; make it")
    cfg = load_config()
    del cfg.MODEL["CLIP"]
    assert "found no MODEL.CLIP.NAME" in refusal(lambda: check_config(cfg), ConfigError)


SETTINGS = {
    "mode": "slide", "window": 64, "stride": 48, "window_batch": 4, "workspace_mib": 256,
    "output": "labels",
}  # fmt: skip
RULE = {
    "region": "unlabeled", "threshold": 0.3, "gate": Gate(), "trusty_target": "seen",
    "workspace_mib": 1,
}  # fmt: skip
# Constructor, its other arguments, argument, the key that says the same, values outside.
ARGUMENTS = [
    (InferenceSettings, SETTINGS, "window_batch", "MODEL.TAGCLIP.TEST.WINDOW_BATCH", [0, -1, 0.5]),
    (InferenceSettings, SETTINGS, "window", "MODEL.TAGCLIP.TEST.WINDOW", [0, 1, -1, 64.0]),
    (InferenceSettings, SETTINGS, "background_threshold",
     "MODEL.TAGCLIP.TEST.BACKGROUND_THRESHOLD", [-0.1, 1.1]),
    (Gate, {}, "bias", "MODEL.TAGCLIP.TEST.SEEN_BIAS", [101, -1e9]),
    (Gate, {}, "scale", "MODEL.TAGCLIP.TEST.GATE_SCALE", [1e9]),
    (SelfTraining, RULE, "threshold", "MODEL.TAGCLIP.SELF_TRAINING.THRESHOLD", [-0.1, 1.1]),
    (SegLoss, {}, "mask_weight", "MODEL.TAGCLIP.LOSS.MASK", [-1]),
    (SegLoss, {}, "dice_weight", "MODEL.TAGCLIP.LOSS.DICE", [-1.0]),
    (SegLoss, {}, "trusty_weight", "MODEL.TAGCLIP.LOSS.TRUSTY", [-1]),
    (SegLoss, {}, "focal_alpha", "MODEL.TAGCLIP.LOSS.FOCAL_ALPHA", [-0.1, 1.1]),
    (SegLoss, {}, "focal_gamma", "MODEL.TAGCLIP.LOSS.FOCAL_GAMMA", [-1]),
    (SegLoss, {}, "stride", "MODEL.TAGCLIP.LOSS.STRIDE", [0, 0.5]),
]  # fmt: skip


@pytest.mark.parametrize(("make", "others", "name", "key", "outside"), ARGUMENTS)
def test_numbers_of_parts(
    make: type, others: dict[str, Any], name: str, key: str, outside: list[Any]
) -> None:
    """nan as a bias ended as weights that are broken, a batch of 0 in CUDA's words."""
    make(**others)
    for value in (*outside, *NUMBERS):
        line = refusal(lambda value=value: make(**others | {name: value}), ConfigError)
        assert line.startswith(f"{key}: found {value!r}, expected ")


@pytest.mark.parametrize("value", [-1, 3, 1.0, *NUMBERS], ids=type_of)
def test_arguments_of_a_prediction(predictor: TagCLIPPredictor, value: Any) -> None:
    image = np.zeros((20, 30, 3), np.uint8)
    predictor.set_vocabulary(["a", "b"])
    assert "top_k: found" in refusal(lambda: predictor(image, top_k=value), ConfigError)
    if value != 1.0 or value is True:
        prediction = predictor(image)
        assert "alpha: found" in refusal(lambda: prediction.overlay(alpha=value), ConfigError)
        fusion = predictor.encode(image, predictor.asked)
        line = refusal(lambda: fusion.labels((4, 4), value), ConfigError)
        assert line.startswith("MODEL.TAGCLIP.TEST.BACKGROUND_THRESHOLD: found")


@pytest.mark.parametrize("value", [-1, 1.5, *NUMBERS], ids=type_of)
def test_arguments_of_a_stream(predictor: TagCLIPPredictor, value: Any) -> None:
    """A negative budget was taken as none, and 0 threads were in the words of the standard library.
    Nothing of the stream is read."""

    def images() -> Iterator[Any]:
        pytest.fail("read")
        yield

    def ahead(**options: Any) -> Callable[[], Any]:
        return lambda: next(read_ahead(images(), lambda item: item, lambda item: 1, **options))

    budget = f"budget: found {value!r}, expected a whole number of bytes, 0 or more"
    assert refusal(ahead(budget=value), ConfigError) == budget
    for threads in (0, value):
        line = refusal(ahead(threads=threads), ConfigError)
        assert line == f"threads: found {threads!r}, expected a whole number, 1 or more"
    predictor.set_vocabulary(["a", "b"])
    stream = predictor.segment_prepared(images(), budget=value)
    assert refusal(lambda: next(stream), ConfigError) == budget


def test_images_of_any_form(predictor: TagCLIPPredictor) -> None:
    """One pixel is an image; none, or other numbers, are not."""
    predictor.set_vocabulary(["a", "b"])
    for shape in ((1, 1, 3), (1, 50, 3), (50, 1, 3), (1, 1, 4)):
        assert predictor(np.zeros(shape, np.uint8)).labels.shape == shape[:2]
    assert predictor(Image.new("L", (1, 1))).labels.shape == (1, 1)
    arrays = [
        np.zeros(s, np.uint8) for s in ((0, 5, 3), (5, 0, 3), (5, 5), (3, 5, 5), (2, 5, 5, 3))
    ]
    arrays += [np.zeros((5, 5, 3), d) for d in (bool, complex, object, np.float32, np.int64, "U1")]
    others = [None, 5, math.nan, torch.zeros(5, 5, 3), {"a": 1}, Image.new("RGB", (0, 5))]
    for image in (*arrays, np.full((5, 5, 3), math.nan), *others):
        assert "image: " in refusal(lambda image=image: predictor(image), DatasetError)
    line = refusal(lambda: predictor([np.zeros((5, 5, 3), np.uint8), None]), DatasetError)
    assert line.startswith("image 1: found a NoneType")


@pytest.mark.parametrize("names", NO_LISTS, ids=type_of)
def test_words_of_a_predictor(predictor: TagCLIPPredictor, names: Any) -> None:
    before = predictor.vocabulary
    for call in (
        lambda: predictor.set_vocabulary(names),
        lambda: predictor.resolve(names),
        lambda: predictor.resolve(["a"], context=names) if names is not None else predictor(None),
    ):
        refusal(call, TagCLIPError)
    assert predictor.vocabulary is before
