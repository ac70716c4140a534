"""projects/WebDemo without a browser: one forward pass, many looks, sessions that do not mix."""

from __future__ import annotations

import json
import math
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from helpers.pictures import picture
from helpers.tiny_checkpoint import save_tiny
from helpers.tiny_run import exit_of, load_tool, own_loggers, train, write_tiny_dataset
from helpers.webdemo_server import Calls, scores_under_the_pointer, served
from PIL import Image

from tagclip import TagCLIPPredictor
from tagclip.errors import CheckpointError, ConfigError, TagCLIPError
from tagclip.projects.webdemo.result import render_result, write_result
from tagclip.projects.webdemo.server import find_examples, serve
from tagclip.projects.webdemo.session import EncodedImage, Limits, Settings, Uploads, encode_image
from tagclip.projects.webdemo.space import UploadSpace
from tagclip.utils.png_notes import read_notes

WORDS, CONTEXT = "cat, zebra", "grass, dog"


@pytest.fixture
def weights(tiny_cfg: CfgNode, tmp_path: Path) -> Path:
    return save_tiny(tiny_cfg, tmp_path / "output")


@pytest.fixture
def predictor(weights: Path) -> TagCLIPPredictor:
    return TagCLIPPredictor.from_checkpoint(weights)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The picture of the predictor's tests, as a file."""
    path = tmp_path / "a photo.png"
    Image.fromarray(picture(70, 95)[:, :, ::-1]).save(path)
    return path


@pytest.fixture
def encoded(predictor: TagCLIPPredictor, image: Path) -> EncodedImage:
    return encode_image(predictor, image, WORDS, CONTEXT, Limits())


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for key in ("sem_seg_labels", "sem_seg_scores", "trusty"):
        assert torch.equal(found[key], expected[key]), key


@pytest.mark.parametrize(
    "settings",
    [
        Settings("both", 0.1, 0.0),
        Settings("none", 0.1, 0.0),
        Settings("seen", 0.3, 0.0),
        Settings("unseen", 0.0, 0.4),
    ],
)
def test_sliders_give_what_a_model_with_these_keys_gives(
    predictor: TagCLIPPredictor, weights: Path, image: Path, settings: Settings
) -> None:
    calls = Calls(predictor.model.backbone)
    encoded = encode_image(predictor, image, WORDS, CONTEXT, Limits())
    found = encoded.predict(settings, encoded.size)
    assert calls.count == len(encoded.fusion.views[0].class_logits)
    test = "MODEL.TAGCLIP.TEST."
    keys = {
        f"{test}GATE": settings.gate,
        f"{test}SEEN_BIAS": str(settings.seen_bias),
        f"{test}BACKGROUND_THRESHOLD": str(settings.background_threshold),
    }
    other = TagCLIPPredictor.from_checkpoint(weights, [x for pair in keys.items() for x in pair])
    other.set_vocabulary(["cat", "zebra"], context=["grass", "dog"])
    expected = other(image)
    assert (expected["sem_seg_labels"] < 0).any() and (expected["sem_seg_labels"] >= 0).any()
    assert_same(found, expected)


def test_the_visitor_says_what_is_seen(
    predictor: TagCLIPPredictor, image: Path, encoded: EncodedImage
) -> None:
    assert encoded.vocabulary.seen == (True, False)
    changed = encoded.with_seen([False, True])
    assert changed.asked.all.seen == (False, True, True, False)
    assert encoded.vocabulary.seen == (True, False)
    before = predictor.asked
    found = changed.predict(Settings.from_config(predictor.cfg), changed.size)
    assert predictor.asked is before
    predictor.set_vocabulary(["cat", "zebra"], seen=["zebra"], context=["grass", "dog"])
    assert_same(found, predictor(image))
    plain = encoded.predict(Settings.from_config(predictor.cfg), changed.size)
    assert not torch.equal(found["sem_seg_scores"], plain["sem_seg_scores"])


def test_a_map_that_compares_classes_is_made_anew(
    tiny_cfg: CfgNode, tmp_path: Path, image: Path
) -> None:
    write_tiny_dataset(tmp_path)
    opts = ["SOLVER.MAX_ITER", 2, "SOLVER.IMS_PER_BATCH", 2, "DATASETS.TEST", ()]
    train(tiny_cfg, *opts, "MODEL.TAGCLIP.TRUSTY.KIND", "relative")
    predictor = TagCLIPPredictor.from_checkpoint(Path(tiny_cfg.OUTPUT_DIR) / "model_final.pth")
    settings, flags = Settings("both", 0.0, 0.0), [False, True]
    found = encode_image(predictor, image, "cat, zebra", "", Limits())
    chosen = found.with_seen(flags)
    assert chosen.with_seen(flags).fusion is chosen.fusion
    predictor.set_vocabulary(["cat", "zebra"], seen=flags)
    expected = predictor(str(image))["trusty"]
    assert torch.equal(chosen.predict(settings, found.size)["trusty"], expected)
    assert not torch.equal(found.predict(settings, found.size)["trusty"], expected)


def test_visitors_at_the_same_time_get_their_own_words(
    predictor: TagCLIPPredictor, image: Path
) -> None:
    questions = ["cat, zebra", "sky, tree, road", "dog", "sofa, grass, cat, car"] * 3
    settings = Settings.from_config(predictor.cfg)

    def answer(words: str) -> tuple[list[str], dict[str, torch.Tensor]]:
        encoded = encode_image(predictor, image, words, "", Limits())
        return encoded.vocabulary.names, encoded.predict(settings, encoded.size)

    expected = [answer(words) for words in questions]
    with ThreadPoolExecutor(4) as pool:
        for found, single in zip(pool.map(answer, questions), expected, strict=True):
            assert found[0] == single[0]
            assert_same(found[1], single[1])


@pytest.mark.parametrize(
    ("words", "context", "message"),
    [
        (" , \n,", "cat", "words: found none, expected at least one"),
        ("cat, CAT ", "", "occur more than once"),
        ("x" * 81, "", "found 81 characters in 'xxxxxxxxxxxxxxxxxxxx'..., expected at most 80"),
        (
            "," * 17601,
            "",
            "found a text of 17601 characters, expected at most 17600; ask",
        ),
        ("cat", "," * 17601, "found a text of 17601 characters, expected at most 17600"),
        (",".join(map(str, range(150))), ",".join(map(str, range(200, 251))), "150, and 51 of"),
    ],
)
def test_words_that_cannot_be_asked(
    predictor: TagCLIPPredictor, image: Path, words: str, context: str, message: str
) -> None:
    with pytest.raises(TagCLIPError, match=message) as error:
        encode_image(predictor, image, words, context, Limits())
    assert "\n" not in str(error.value)


def test_an_image_that_cannot_be_read_is_called_by_its_name(
    weights: Path, image: Path, tmp_path: Path
) -> None:
    predictor = TagCLIPPredictor.from_checkpoint(weights, ["INPUT.MAX_PIXELS", "6000"])
    (tmp_path / "bad.jpg").write_bytes(b"<html></html>")
    for path, message in (
        (None, "image: found none"),
        (tmp_path / "bad.jpg", "^bad.jpg: "),
        (image, r"^a photo.png: image has 95x70 pixels, INPUT.MAX_PIXELS allows 6000"),
    ):
        with pytest.raises(TagCLIPError, match=message):
            encode_image(predictor, path, WORDS, "", Limits())


def test_the_page_holds_pictures_scores_and_shares(
    predictor: TagCLIPPredictor, encoded: EncodedImage
) -> None:
    settings = Settings("both", 0.1, 0.0)
    expected = encoded.predict(settings, (70, 95), 3)
    page = render_result(encoded, settings, 0.5)
    data = scores_under_the_pointer(page)
    assert data["names"] == ["cat", "★ zebra", "grass", "dog"] and data["classes"] == 2
    labels = expected["sem_seg_labels"].numpy()
    assert np.array_equal(data["labels"][0], np.where(labels < 0, 255, labels))
    assert np.array_equal(data["top"], expected["top_labels"].numpy())
    scores = expected["top_scores"].float().clamp(0, 1).numpy()
    assert np.abs(data["scores"] / 100 - scores).max() < 0.00501
    assert np.abs(data["trusty"][0] / 100 - expected["trusty"].float().numpy()).max() < 0.00501
    assert page.count("<img ") == 2 and page.count("data:image/jpeg;base64,") == 2
    for name, share in (("★ zebra", (labels == 1).mean()), ("other", (labels < 0).mean())):
        assert re.search(rf"{name}</td><td>{100 * share:.1f} %", page), name
    assert render_result(encoded, settings, 0.0) != page
    # Whatever masks have trained: the visitor decides what counts.
    for seen in ([True, True], [True, False]):
        page = render_result(encoded.with_seen(seen), settings, 0.5)
        assert ("★ counts as unseen" in page) == (not all(seen))
        assert "no mask" not in page


def test_words_are_data_not_markup(predictor: TagCLIPPredictor, image: Path) -> None:
    encoded = encode_image(predictor, image, "<b onclick=x>, a & 'b\"", "", Limits())
    page = render_result(encoded, Settings("both", 0.1, 0.0), 0.5)
    assert "<b" not in page and "&lt;b onclick=x&gt;" in page
    assert scores_under_the_pointer(page)["names"] == ["★ <b onclick=x>", "★ a & 'b\""]


def test_files_have_the_size_of_the_image(predictor: TagCLIPPredictor, tmp_path: Path) -> None:
    Image.fromarray(picture(450, 1000)[:, :, ::-1]).save(tmp_path / "wide.png")
    encoded = encode_image(predictor, tmp_path / "wide.png", WORDS, CONTEXT, Limits())
    assert (encoded.size, encoded.picture.shape) == ((450, 1000), (360, 800, 3))
    assert scores_under_the_pointer(render_result(encoded, Settings("both", 0.1, 0), 1))[
        "labels"
    ].shape == (1, 86, 192)
    labels, summary = write_result(encoded, Settings("seen", 0.2, 0.05), tmp_path)
    expected = encoded.predict(Settings("seen", 0.2, 0.05), (450, 1000))["sem_seg_labels"].numpy()
    assert np.array_equal(np.array(Image.open(labels)), np.where(expected < 0, 255, expected))
    found = [k for k in range(2) if (expected == k).any()]
    assert read_notes(labels) == ("", {k: WORDS.split(", ")[k] for k in found}) and found
    content = json.loads(summary.read_text())
    assert content["class_names"] == ["cat", "zebra"] and content["seen"] == [True, False]
    assert (content["class_ids"], content["ignore_label"]) == ([0, 1], 255)
    assert {row["name"]: row["id"] for row in content["classes"]}.items() <= {
        "cat": 0,
        "zebra": 1,
    }.items()
    assert content["context"] == ["grass", "dog"] and content["image"] == "wide.png"
    assert (content["gate"], content["seen_bias"], content["background_threshold"]) == (
        "seen", 0.2, 0.05,
    )  # fmt: skip
    assert content["other"] == pytest.approx((expected < 0).mean(), abs=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (700, 1)])
def test_thin_images_are_drawn(
    predictor: TagCLIPPredictor, tmp_path: Path, size: tuple[int, int]
) -> None:
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(tmp_path / "thin.png")
    limits = Limits(windows=1200)
    encoded = encode_image(predictor, tmp_path / "thin.png", WORDS, "", limits)
    assert render_result(encoded, Settings("both", 0.1, 0.0), 0.5).count("<img ") == 2


def test_examples_are_scenes_of_minibench_or_of_a_folder(
    predictor: TagCLIPPredictor, image: Path, tmp_path: Path
) -> None:
    (target := tmp_path / "served").mkdir()
    assert find_examples(predictor, None, target) == []
    with pytest.raises(ConfigError, match=r"--examples .*nothing: no such file"):
        find_examples(predictor, str(tmp_path / "nothing"), target)
    ((copy, words),) = find_examples(predictor, str(image), target)
    assert Path(copy).name == image.name and words == "" and target in Path(copy).parents
    predictor.cfg.defrost()
    predictor.cfg.PROJECTS = ["minibench"]
    examples = find_examples(predictor, None, target)
    assert len(examples) == 5 and all(words for _, words in examples)
    assert Image.open(examples[0][0]).size == (96, 96)


@pytest.fixture
def tool(repository: Path) -> ModuleType:
    return load_tool(repository / "projects" / "WebDemo" / "serve.py")


def test_without_gradio_or_weights_one_line_says_what_to_do(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tool, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="run: pip install gradio"):
        tool.main(tool.parse_args([]))
    monkeypatch.setattr(tool, "find_spec", lambda name: name)
    with pytest.raises(CheckpointError, match="model_final.pth: .*run tagclip minibench"):
        tool.main(tool.parse_args([]))
    with pytest.raises(CheckpointError, match="mine.pth"), own_loggers():
        tool.main(tool.parse_args(["--weights", "mine.pth"]))
    assert exit_of(tool.parse_args, ["--max-words", "251"]) == 2
    assert exit_of(tool.parse_args, ["--share"]) == 2


def test_values_that_no_slider_has_are_refused_in_one_line(
    predictor: TagCLIPPredictor, encoded: EncodedImage, image: Path
) -> None:
    gradio = pytest.importorskip("gradio", reason="gradio is not installed: pip install '.[demo]'")
    from tagclip.projects.webdemo.handlers import Handlers

    calls = Calls(predictor.model.backbone)
    space = UploadSpace(1 << 20, 1 << 20)
    handlers = Handlers(predictor, Limits(), Uploads(image.parent, {}), space)
    request = SimpleNamespace(session_hash="me", client=None)
    good = {"gate": "both", "seen_bias": 0.1, "background_threshold": 0, "opacity": 1}
    asked = {"image": {"path": str(image)}, "words": "cat", "context": None} | good

    def save(encoded: EncodedImage, opacity: object, **sliders: object) -> None:
        handlers.save(request, encoded, **sliders)

    wrong = [("gate", value, "TEST.GATE: found ") for value in (None, 1, ["both"], "x")]
    numbers = ("a", math.nan, math.inf, None, True, [0.1])
    wrong += [("seen_bias", v, "TEST.SEEN_BIAS: found ") for v in (*numbers, 1e9, -101)]
    name = "TEST.BACKGROUND_THRESHOLD: found "
    wrong += [("background_threshold", v, name) for v in (*numbers, -5, 2)]
    faded = [("opacity", v, "opacity: found ") for v in (*numbers, 5, -1)]
    texts = [(n, v, f"{n}: found ") for n in ("words", "context") for v in (5, ["a"], {"a": 1})]
    images = [("image", v, "image: found no file") for v in (5, "x", ["a"], {"path": 5})]
    flags = [("seen", v, "seen: found ") for v in (None, 5, "cat", [None], {"cat": 1})]
    for call, given, cases in (
        (partial(handlers.segment, request, None), asked, wrong + faded + texts + images),
        (partial(handlers.choose_seen, encoded), {"seen": ["cat"]} | good, wrong + faded + flags),
        (partial(handlers.adjust, encoded), good, wrong + faded),
        (partial(save, encoded), good, wrong),
    ):
        for key, value, message in cases:
            with pytest.raises(gradio.Error) as caught:
                call(**given | {key: value})
            assert message in caught.value.message and "\n" not in caught.value.message
    assert not calls.count
    for call, given in ((handlers.choose_seen, {"seen": ["cat"]}), (handlers.adjust, {})):
        assert call(encoded, **given, **good)


def test_sessions_of_the_running_page_do_not_mix(
    predictor: TagCLIPPredictor, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gradio", reason="gradio is not installed: pip install '.[demo]'")
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    calls = Calls(predictor.model.backbone)
    (folder := tmp_path / "served").mkdir()
    sliders = ("both", 0.1, 0.0, 0.5)
    with served(predictor, image, folder, monkeypatch) as address:
        port = int(address.rstrip("/").rsplit(":", 1)[1])
        with pytest.raises(ConfigError, match=f"--port {port}: found it taken"):
            serve(predictor, [], folder, port=port)
        first, second = (Client(address, verbose=False) for _ in range(2))
        upload = handle_file(str(image))
        for name, given in (
            ("/save", sliders[:3]),
            ("/adjust", sliders),
            ("/choose_seen", (["cat"], *sliders)),
        ):
            with pytest.raises(AppError, match="press Segment first, or, .* reload the page"):
                first.predict(*given, api_name=name)
        first.predict(upload, "cat, zebra", "", *sliders, api_name="/segment")
        second.predict(upload, "sky, tree", "dog", *sliders, api_name="/segment")
        count = calls.count
        page = first.predict("none", 0.5, 0.0, 0.5, api_name="/adjust")[0]
        assert scores_under_the_pointer(page)["names"] == ["cat", "★ zebra"]
        message = "seen: found 'Cat', 'zebbra', expected words of the image: 'cat', 'zebra'"
        with pytest.raises(AppError, match=message):
            first.predict(["Cat", "zebra", "zebbra"], *sliders, api_name="/choose_seen")
        page = first.predict(["zebra"], *sliders, api_name="/choose_seen")[0]
        assert scores_under_the_pointer(page)["names"] == ["★ cat", "zebra"]
        files = second.predict(*sliders[:3], api_name="/save")["value"]
        assert json.loads(Path(files[1]).read_text())["class_names"] == ["sky", "tree"]
        assert calls.count == count > 0
        for words, message in (("", "words: found none"), ("a,A", "more than once")):
            with pytest.raises(AppError, match=message):
                first.predict(upload, words, "", *sliders, api_name="/segment")
        with pytest.raises(AppError, match="TEST.GATE: found .*neither.*, expected .*none"):
            first.predict("neither", 0.1, 0.0, 0.5, api_name="/adjust")
        boxes, page, _ = first.predict(upload, "tree, zebra", "", *sliders, api_name="/segment")
        assert boxes["value"] == ["zebra"], "the choice of before is kept"
    assert not list(Path(tmp_path).glob("*.pyi"))


SLIDERS = {"gate": "both", "seen_bias": 0.1, "background_threshold": 0, "opacity": 0.5}
API = {
    "/segment": {"image": "a photo.png", "words": "cat, grass", "context": "", **SLIDERS},
    "/adjust": SLIDERS,
    "/choose_seen": {"seen": [], **SLIDERS},
    "/save": {key: value for key, value in SLIDERS.items() if key != "opacity"},
}


def test_every_argument_of_the_api_has_a_name_and_a_default(
    predictor: TagCLIPPredictor, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gradio", reason="gradio is not installed: pip install '.[demo]'")
    from gradio_client import Client

    (folder := tmp_path / "served").mkdir()
    with served(predictor, image, folder, monkeypatch) as address:
        calls = Client(address, verbose=False).view_api(return_format="dict")["named_endpoints"]
    found = {
        name: {each["parameter_name"]: each["parameter_default"] for each in call["parameters"]}
        for name, call in calls.items()
    }
    found["/segment"]["image"] = Path(found["/segment"]["image"]["path"]).name
    assert found == API
    assert all(p["parameter_has_default"] for call in calls.values() for p in call["parameters"])


def test_the_documented_call_gives_the_labels_of_the_predictor(
    predictor: TagCLIPPredictor,
    image: Path,
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The code of the README, on a running page."""
    pytest.importorskip("gradio", reason="gradio is not installed: pip install '.[demo]'")
    text = (repository / "projects" / "WebDemo" / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (folder := tmp_path / "served").mkdir()
    with served(predictor, image, folder, monkeypatch) as address:
        code = code.replace("http://127.0.0.1:7860", address).replace("photo.jpg", str(image))
        exec(code, found := {})
    content = json.loads(Path(found["summary"]).read_text(encoding="utf-8"))
    assert content["class_names"] == ["cat", "dining table"] and content["seen"] == [True, False]
    assert (content["gate"], content["seen_bias"], content["background_threshold"]) == (
        "both", 0.1, 0.1,
    )  # fmt: skip
    settings = Settings("both", 0.1, 0.1)
    encoded = encode_image(predictor, image, "cat, dining table", "", Limits())
    expected = encoded.predict(settings, encoded.size)["sem_seg_labels"].numpy()
    assert (np.array(Image.open(found["labels"])) == np.where(expected < 0, 255, expected)).all()


def test_names_are_given_one_by_one(tool: ModuleType) -> None:
    assert tool.parse_args([]).allow_host == []
    args = tool.parse_args(["--allow-host", "a.example", "--allow-host", "b.example"])
    assert args.allow_host == ["a.example", "b.example"]


@pytest.mark.parametrize(
    "words",
    [
        ["--allow-host", "https://demo.example/"],
        ["--allow-host", "a b"],
        ["--allow-host", ""],
        ["--proxy", "demo.example"],
        ["--proxy", "10.0.0.0.1"],
        ["--max-upload-mb", "20", "--max-uploads-mb", "19"],
    ],
)
def test_options_that_would_never_fit_are_refused(tool: ModuleType, words: list[str]) -> None:
    assert exit_of(tool.parse_args, words) == 2
    good = ["--allow-host", "demo.example:8080", "--allow-host", "[::1]", "--proxy", "::1"]
    args = tool.parse_args([*good, "--max-upload-mb", "20", "--max-uploads-mb", "20"])
    assert (args.allow_host, args.proxy) == (["demo.example:8080", "[::1]"], ["::1"])
