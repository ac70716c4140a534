"""MiniBench's data and mini CLIP: the same everywhere, as described, mended when damaged."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable
from itertools import combinations
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone
from helpers.clip_files import registered
from PIL import Image

from tagclip import TextBank, Vocabulary, load_config
from tagclip.data import read_image, read_label
from tagclip.errors import ConfigError, DatasetError
from tagclip.modeling.clip import CLIPSource
from tagclip.projects.minibench import VOCABULARY_JSON, dataset_root, generate, scenes
from tagclip.projects.minibench.clip_pairs import PREFIXES, crops, pairs, words
from tagclip.utils.run_lock import RunLock

VOCABULARY = Vocabulary.from_json(VOCABULARY_JSON)
# sha256 over image and label of the first three scenes.
FIRST_SCENES = {
    "train": "536a26ffdb968f8151901774b4dc1a1a0405e572a4a6f72e5e40123718433196",
    "val": "84b994b177e8999827f38e46c20bf6a1698db16bf61087d8dab91ec2af858789",
    "test": "7bde953d9a63580cf84c4e79e6094a471a24ed1a567f4bfcdb4dcd94ce2c4b74",
}
SMALL = 4


def digest(drawn: Iterable[scenes.Scene]) -> str:
    result = hashlib.sha256()
    for one in drawn:
        result.update(one.image.tobytes() + one.label.tobytes())
    return result.hexdigest()


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[scenes.Scene]]:
    """The first 40 scenes of every subset."""
    return {s: [generate.scene(s, index) for index in range(40)] for s in generate.SUBSETS}


@pytest.fixture(scope="module")
def validation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of the generated validation set."""
    root = tmp_path_factory.mktemp("minibench")
    generate.generate(root, ["val"])
    return root


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Root for a subset of four images with a checksum of its own."""
    monkeypatch.setattr(generate, "SUBSETS", {"val": (SMALL, 22)})
    checksums = tmp_path / "checksums.json"
    expected = digest(generate.scene("val", index) for index in range(SMALL))
    checksums.write_text(json.dumps({"val": expected}))
    monkeypatch.setattr(generate, "_CHECKSUMS", checksums)
    return tmp_path / "data"


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_a_scene_depends_on_subset_and_index_only(drawn: dict[str, list[scenes.Scene]]) -> None:
    for subset, expected in FIRST_SCENES.items():
        assert digest(drawn[subset][:3]) == expected
        assert digest(reversed([generate.scene(subset, i) for i in (2, 1, 0)])) == expected


def test_no_image_is_in_two_places(drawn: dict[str, list[scenes.Scene]]) -> None:
    images = [one.image.tobytes() for subset in drawn.values() for one in subset]
    assert len(set(images)) == len(images) == 120


def test_labels_are_classes_or_void(drawn: dict[str, list[scenes.Scene]]) -> None:
    assert VOCABULARY.names == list(scenes.CLASSES)
    for subset in drawn.values():
        for one in subset:
            assert one.image.shape == (96, 96, 3) and one.image.dtype == np.uint8
            assert one.label.shape == (96, 96) and one.label.dtype == np.uint8
            assert set(np.unique(one.label)) <= {*range(24), 255}
            assert (one.label[one.clutter] == 255).all()
            # Labels meet at void pixels only.
            for a, b in ((one.label[1:], one.label[:-1]), (one.label[:, 1:], one.label[:, :-1])):
                assert ((a == b) | (a == 255) | (b == 255)).all()
        void = np.mean([one.label == 255 for one in subset])
        assert 0.15 <= void <= 0.30
    assert len(np.unique([one.label for one in drawn["train"]])) == 25


def test_things_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    masks: list[np.ndarray] = []
    paint = scenes._Canvas.thing

    def thing(canvas: scenes._Canvas, index: int, mask: np.ndarray) -> None:
        masks.append(mask)
        paint(canvas, index, mask)

    monkeypatch.setattr(scenes._Canvas, "thing", thing)
    overlapping = 0
    for index in range(20):
        masks.clear()
        generate.scene("test", index)
        assert 2 <= len(masks) <= 4 and all(mask.any() for mask in masks)
        overlapping += any((a & b).any() for a, b in combinations(masks, 2))
    assert overlapping >= 10


def test_generated_files_have_the_committed_checksum(validation: Path) -> None:
    committed = json.loads(generate._CHECKSUMS.read_text())
    assert set(committed) == set(generate.SUBSETS) == {"train", "val", "test"}
    assert generate.checksum(validation, "val") == committed["val"]
    decoded = hashlib.sha256()
    for image in sorted((validation / "images" / "val").iterdir()):
        decoded.update(read_image(image).tobytes())
        decoded.update(read_label(validation / "labels" / "val" / image.name).tobytes())
    assert decoded.hexdigest() == committed["val"]
    for kind in ("images", "labels"):
        names = sorted(path.name for path in (validation / kind / "val").iterdir())
        assert names == [f"{index:06d}.png" for index in range(100)]
    assert sorted(path.name for path in validation.iterdir()) == ["images", "labels"]


def test_files_read_back_as_drawn(validation: Path, drawn: dict[str, list[scenes.Scene]]) -> None:
    for index in (0, 17, 39):
        image = validation / "images" / "val" / f"{index:06d}.png"
        label = validation / "labels" / "val" / image.name
        assert (read_image(image) == drawn["val"][index].image).all()
        assert (read_label(label) == drawn["val"][index].label).all()
        with Image.open(label) as file:
            assert file.mode == "P"
            colors = np.array(file.getpalette()).reshape(-1, 3)
        assert (colors[:24] == VOCABULARY.colors).all() and (colors[255] == 255).all()


def test_generating_again_changes_nothing(
    small: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    generate.generate(small, ["val"])
    assert [r.message for r in caplog.records] == [f"{small}: wrote and verified 4 images of val"]
    before = {path: path.stat().st_mtime_ns for path in small.rglob("*")}
    caplog.clear()
    generate.generate(small, ["val"])
    assert [r.message for r in caplog.records] == [f"{small}: val is complete and verified"]
    assert {path: path.stat().st_mtime_ns for path in small.rglob("*")} == before
    # No progress bar in a file.
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interruption_leaves_nothing_half(
    small: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def interrupted(subset: str, index: int) -> scenes.Scene:
        if index == 2:
            raise error
        return draw(subset, index)

    draw = generate.scene
    monkeypatch.setattr(generate, "scene", interrupted)
    with pytest.raises(error):
        generate.generate(small, ["val"])
    assert not small.exists()
    monkeypatch.setattr(generate, "scene", draw)
    generate.generate(small, ["val"])
    assert len(contents(small)) == 2 * SMALL


def test_what_a_killed_run_left_goes(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = generate.scene
    monkeypatch.setattr(generate, "scene", lambda subset, index: os._exit(9))
    if not (child := os.fork()):
        try:
            generate.generate(small, ["val"])
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert len(list(small.glob("*/.val.*.tmp"))) == 2
    monkeypatch.setattr(generate, "scene", draw)
    generate.generate(small, ["val"])
    assert len(contents(small)) == 2 * SMALL and not list(small.rglob(".*"))


def test_another_run_is_let_be(small: Path) -> None:
    with RunLock(small), pytest.raises(ConfigError, match=r"at work in this folder, .* wait until"):
        generate.generate(small, ["val"])


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def change_one_pixel(path: Path) -> None:
    with Image.open(path) as file:
        file.load()
    file.putpixel((3, 3), 7 if file.mode == "P" else (1, 2, 3))
    file.save(path)


def add_another(path: Path) -> None:
    path.with_name("000004.png").write_bytes(path.read_bytes())


@pytest.mark.parametrize("kind", ["images", "labels"])
@pytest.mark.parametrize(
    "damage", [truncate, change_one_pixel, add_another, Path.unlink, lambda p: p.write_bytes(b"")]
)
def test_damage_is_found_and_mended(
    small: Path, kind: str, damage: Callable[[Path], object]
) -> None:
    generate.generate(small, ["val"])
    before = contents(small)
    damage(small / kind / "val" / "000001.png")
    assert contents(small) != before
    generate.generate(small, ["val"])
    assert contents(small) == before


def test_a_missing_half_is_mended(small: Path) -> None:
    generate.generate(small, ["val"])
    before = contents(small)
    for path in (small / "labels" / "val").iterdir():
        path.unlink()
    (small / "labels" / "val").rmdir()
    generate.generate(small, ["val"])
    assert contents(small) == before


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_files_of_somebody_else_stay(small: Path, kind: str) -> None:
    mine = small / kind / "val" / "holiday.jpg"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    with pytest.raises(DatasetError, match=r"holiday\.jpg: found a file that is none of Mini"):
        generate.generate(small, ["val"])
    assert mine.read_bytes() == b"mine" and len(list(small.rglob("*.*"))) == 1


def test_other_pixels_than_the_committed_ones_are_refused(small: Path) -> None:
    generate._CHECKSUMS.write_text(json.dumps({"val": "0" * 64}))
    with pytest.raises(DatasetError, match=r"generated val with sha256 .*, expected 0000"):
        generate.generate(small, ["val"])
    assert not small.exists()


@pytest.fixture(scope="module")
def clip_cfg(repository: Path) -> CfgNode:
    """Plain CLIP: no prompts, class embedding counted once."""
    config = repository / "projects/MiniBench/configs/tagclip_minibench_composition.yaml"
    opts = ["MODEL.CLIP.PROMPT.NUM_TOKENS", "0", "MODEL.CLIP.DOUBLE_CLS_EMBED", "False"]
    return load_config(config, [*opts, "MODEL.DEVICE", "cpu"])


@pytest.mark.parametrize("value", ["!!!", "AAAA", "ÄÖ??", "a b"])
def test_merges_that_are_none_are_blamed_on_their_key(clip_cfg: CfgNode, value: str) -> None:
    """Not on the file, which is not read; and nothing is not a list of merges."""
    cfg = clip_cfg.clone()
    cfg.MODEL.CLIP.MERGES = value
    with pytest.raises(ConfigError, match=r"^MODEL\.CLIP\.MERGES: cannot be read .*; leave it emp"):
        CLIPSource.from_config(cfg).merges()


@torch.no_grad()
def test_mini_clip_names_crops_and_is_open_clips_model(clip_cfg: CfgNode) -> None:
    images, classes = crops(10, seed=1)
    mean, std = (np.array(clip_cfg.MODEL[f"PIXEL_{name}"], np.float32) for name in ("MEAN", "STD"))
    inputs = torch.from_numpy(((images - mean) / std).transpose(0, 3, 1, 2)).float()
    vectors = build_backbone(clip_cfg).eval()(inputs)["clip_global"]
    text = TextBank(clip_cfg)(VOCABULARY)
    accuracy = ((vectors @ text.T).argmax(dim=1).numpy() == classes).mean()
    assert accuracy >= 0.95

    model_json = Path(clip_cfg.MODEL.CLIP.NAME)
    merges = str(model_json.with_name("mini_bpe.txt.gz"))
    with registered(model_json):
        reference = open_clip.create_model("mini_clip", clip_cfg.MODEL.CLIP.PRETRAINED).eval()
        tokenizer = open_clip.get_tokenizer("mini_clip", bpe_path=merges)
    tokens = tokenizer([f"a photo of a {name}" for name in VOCABULARY.names])
    assert (tokenizer.vocab_size, tokens.shape) == (588, (24, 32))
    torch.testing.assert_close(vectors, reference.encode_image(inputs, True), atol=1e-5, rtol=0)
    torch.testing.assert_close(text, reference.encode_text(tokens, True), atol=1e-5, rtol=0)


def test_the_merges_know_every_caption_word(clip_cfg: CfgNode) -> None:
    source = CLIPSource.from_config(clip_cfg)
    _, captions = pairs(60)
    spoken = {word for text in (*captions, *PREFIXES) for word in text.split()}
    assert spoken <= set(words())
    tokens = {
        word: tuple(ids[1:-1]) for word, ids in zip(words(), source.tokenize(words()), strict=True)
    }
    # The pair "r e" of "red" comes before "g r": green stays in pieces.
    assert {word for word, ids in tokens.items() if len(ids) > 1} <= {"green"}
    assert len(set(tokens.values())) == len(words())
    assert all(source.tokenizer.decode(list(ids)).strip() == word for word, ids in tokens.items())


def test_the_assets_are_small(repository: Path) -> None:
    files = list((repository / "projects" / "MiniBench" / "assets").glob("mini_*"))
    assert {file.name for file in files} >= {"mini_clip.safetensors", "mini_bpe.txt.gz"}
    assert sum(file.stat().st_size for file in files) <= 2 * 2**20


def test_the_data_of_a_checkout_is_found_from_anywhere(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    assert dataset_root() == repository / "datasets" / "minibench"
    monkeypatch.setenv("DETECTRON2_DATASETS", "~/data")
    assert dataset_root() == Path.home() / "data" / "minibench"
