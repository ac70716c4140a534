"""Words in, labels out: the predictor against the model's own scores, and its refusals."""

from __future__ import annotations

import gzip
import json
import logging
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from helpers.clip_files import random_clip, tiny_config
from helpers.pictures import picture
from helpers.tiny_checkpoint import save_tiny
from helpers.tiny_run import changed, tiny_tree
from helpers.toy_dataset import forget, write_json
from PIL import Image
from safetensors.torch import save_file

from tagclip import TagCLIPPredictor, Vocabulary, ZeroShotDatasetMapper
from tagclip.checkpoint import checkpoint_config, read_checkpoint
from tagclip.data.prepared_image import ImagePreparer, PreparedImage
from tagclip.errors import CheckpointError, ConfigError, DatasetError, VocabularyError
from tagclip.structures.class_color import name_color
from tagclip.structures.vocabulary import ClassEntry

WORDS = ["cat", "zebra", "sky"]
MERGED_CLIP = tiny_config(text_tokenizer_kwargs={"bpe_path": "merges.txt.gz"})


@pytest.fixture
def cfg(tiny_cfg: CfgNode, tmp_path: Path) -> CfgNode:
    """Config whose MODEL.WEIGHTS is a checkpoint."""
    return changed(tiny_cfg, "MODEL.WEIGHTS", str(save_tiny(tiny_cfg, tmp_path / "output")))


@pytest.fixture
def predictor(cfg: CfgNode) -> TagCLIPPredictor:
    return TagCLIPPredictor(cfg)


def scores_of(predictor: TagCLIPPredictor, bgr: np.ndarray, vocabulary: Vocabulary) -> torch.Tensor:
    """(K, H, W) scores of all classes at once, from an image resized by hand."""
    height, width = bgr.shape[:2]
    resize = predictor.preparer.inputs.views[0].augmentations[0]
    resized = resize.get_transform(bgr).apply_image(bgr)
    image = torch.from_numpy(resized[:, :, ::-1].transpose(2, 0, 1).copy())
    with torch.no_grad():
        return predictor.model.encode({"image": image}, vocabulary).scores((height, width))[
            "sem_seg"
        ]


def assert_same(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first.keys() == second.keys()
    for key, value in first.items():
        same = torch.equal(value, second[key]) if torch.is_tensor(value) else value == second[key]
        assert same, key


def test_equals_what_an_evaluation_computes(cfg: CfgNode, tmp_path: Path) -> None:
    predictor = TagCLIPPredictor(cfg)
    Image.fromarray(picture()).save(tmp_path / "a.png")
    mapper = ZeroShotDatasetMapper(cfg, is_train=False, dataset_name=cfg.DATASETS.TEST[0])
    expected = predictor.model([mapper({"file_name": str(tmp_path / "a.png")})])[0]
    found = predictor(tmp_path / "a.png")
    assert found.pop("class_names") == predictor.vocabulary.names
    assert (
        found["sem_seg_labels"].dtype == torch.int16 and len(found["sem_seg_labels"].unique()) > 1
    )
    assert_same(found, expected)


def test_arrays_are_bgr_and_all_forms_of_an_image_agree(
    predictor: TagCLIPPredictor, tmp_path: Path
) -> None:
    bgr = picture()
    image = Image.fromarray(bgr[:, :, ::-1])
    image.save(tmp_path / "a.png")
    path = tmp_path / "a.png"
    results = predictor([bgr, image, str(path), path, path.read_bytes()])
    for result in results:
        assert_same(result, results[0])
    assert_same(predictor(bgr), results[0])
    other = predictor(bgr[:, :, ::-1])
    assert not torch.equal(other["sem_seg_scores"], results[0]["sem_seg_scores"])
    assert predictor([]) == []


def test_views_of_a_test_augmentation_are_averaged(cfg: CfgNode) -> None:
    images = [picture(), picture()[:, ::-1]]
    plain, mirrored = (r["trusty"].float() for r in TagCLIPPredictor(cfg)(images))
    cfg = changed(cfg, "TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (64,), "TEST.AUG.FLIP", True)
    found = TagCLIPPredictor(cfg)(images[0])["trusty"].float()
    difference = (found - (plain + mirrored.flip(-1)) / 2).abs().max()
    assert 20 * difference < (found - plain).abs().max()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1", "I;16", "CMYK"])
def test_pil_modes(predictor: TagCLIPPredictor, mode: str) -> None:
    rgb = Image.fromarray(picture())
    if mode == "I;16":
        gray = np.array(rgb.convert("L"))
        image = Image.fromarray(gray.astype(np.uint16) * 257)
        expected = gray[..., None].repeat(3, 2)
    else:
        image = rgb.convert(mode)
        if "A" in mode:
            alpha = Image.fromarray(np.indices((40, 56))[1].astype(np.uint8) // 28 * 255)
            image.putalpha(alpha)
        expected = np.array(image.convert("RGB"))
    assert_same(predictor(image), predictor(expected[:, :, ::-1]))


def test_bgra_arrays_lose_their_alpha(predictor: TagCLIPPredictor) -> None:
    bgr = picture()[:, :, ::-1]
    bgra = np.dstack([bgr, picture(seed=1)[:, :, 0]])
    assert_same(predictor(bgra), predictor(bgr))


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (30, 1)])
def test_any_size_gives_labels_of_that_size(
    predictor: TagCLIPPredictor, size: tuple[int, int]
) -> None:
    assert predictor(np.zeros((*size, 3), np.uint8))["sem_seg_labels"].shape == size


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 5, 3), np.float32), r"float32 values 0\.0 to 0\.0, .*scale it"),
        (np.full((4, 5, 3), 200.0), "float64 values 200.0 to 200.0, expected a BGR array"),
        (np.zeros((3, 4, 5), np.uint8), r"array \(3, 4, 5\), .*image\.transpose\(1, 2, 0\)"),
        (np.zeros((4, 5), np.uint8), "COLOR_GRAY2BGR"),
        (np.zeros((4, 5, 5), np.uint8), r"array \(4, 5, 5\), expected a BGR array"),
        (np.zeros((4, 5, 4), np.uint16), "found uint16 values 0 to 0"),
        (np.zeros((2, 4, 5, 3), np.uint8), "several images are a list"),
        (np.zeros((0, 5, 3), np.uint8), r"empty array \(0, 5, 3\)"),
        (np.zeros((4, 5, 3), bool), "found bool values"),
        (torch.zeros(3, 4, 5), "found a Tensor"),
        (None, "found a NoneType"),
        (Path("nowhere.png"), "nowhere.png: no such image"),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(
    predictor: TagCLIPPredictor, image: Any, message: str
) -> None:
    with pytest.raises(DatasetError, match=message) as error:
        predictor([picture(), image])
    assert "\n" not in str(error.value)


def test_a_strip_that_would_become_enormous_is_not_enlarged(cfg: CfgNode) -> None:
    predictor = TagCLIPPredictor(changed(cfg, "INPUT.MAX_PIXELS", 64 * 6400))
    for width, size in ((100, (64, 6400)), (101, (1, 101))):
        strip = np.zeros((1, width, 3), np.uint8)
        assert predictor.preparer.inputs(strip)["image"].shape[1:] == size
        assert predictor(strip)["sem_seg_labels"].shape == (1, width)
    with pytest.raises(DatasetError, match="allows 409600; .*INPUT.MAX_SIZE_TEST 4096"):
        predictor(np.zeros((1, 64 * 6400 + 1, 3), np.uint8))
    with pytest.raises(DatasetError, match="image has 1000x500 pixels"):
        predictor(Image.new("RGB", (1000, 500)))


def test_vocabularies_of_every_kind(
    predictor: TagCLIPPredictor, tiny_vocabulary_json: str, cfg: CfgNode
) -> None:
    predictor.set_vocabulary(["CAT", "zebra", "sky"])
    assert predictor.vocabulary.seen == (True, False, False)
    assert predictor(picture())["class_names"] == ["CAT", "zebra", "sky"]
    predictor.set_vocabulary(["a", "b"], seen=["b"])
    assert predictor.vocabulary.seen == (False, True)
    predictor.set_vocabulary(Vocabulary.from_names(["cat", "dog"], seen=[False, True]))
    assert predictor.vocabulary.seen == (False, True)
    for source in (cfg.DATASETS.TRAIN[0], tiny_vocabulary_json, Path(tiny_vocabulary_json)):
        predictor.set_vocabulary(source)
        assert predictor.vocabulary.seen == (True, False, True, False, True)
    for source, message in (("cat", "the text 'cat'"), ([], "empty"), (["a", "A "], "once")):
        with pytest.raises(VocabularyError, match=message):
            predictor.set_vocabulary(source)


def test_unknown_classes_follow_a_policy(cfg: CfgNode) -> None:
    predictor = TagCLIPPredictor(changed(cfg, "MODEL.TAGCLIP.TEST.UNKNOWN_CLASSES", "unseen"))
    predictor.set_vocabulary(WORDS)
    assert predictor.vocabulary.seen == (False, False, False)


def test_context_competes_and_is_hidden(predictor: TagCLIPPredictor) -> None:
    predictor.set_vocabulary(["cat", "zebra"], context=["Zebra", "grass", "tree", "road"])
    everything = predictor.asked.all
    assert everything.names == ["cat", "zebra", "grass", "tree", "road"]
    assert everything.seen == (True, False, True, False, False)
    scores = scores_of(predictor, picture(), everything)
    found = predictor(picture(), top_k=2)
    labels = scores.argmax(0)
    assert (labels < 2).any() and (labels >= 2).any()
    assert torch.equal(found["sem_seg_labels"].long(), torch.where(labels < 2, labels, -1))
    order = scores[:2].sort(dim=0, descending=True, stable=True)
    assert torch.equal(found["top_labels"].long(), order.indices)
    assert torch.equal(found["top_scores"], order.values.half())
    for wrong in (-1, 3):
        with pytest.raises(ConfigError, match=f"top_k: found {wrong}, expected 0 to 2"):
            predictor(picture(), top_k=wrong)


def test_pixels_below_the_background_threshold_are_other(cfg: CfgNode, tmp_path: Path) -> None:
    scores = TagCLIPPredictor(cfg)(picture())
    threshold = round(float(scores["sem_seg_scores"].float().median()), 4)
    cfg = changed(cfg, "MODEL.TAGCLIP.TEST.BACKGROUND_THRESHOLD", threshold)
    predictor = TagCLIPPredictor(cfg)
    best, labels = scores_of(predictor, picture(), predictor.vocabulary).max(0)
    expected = torch.where(best < threshold, -1, labels)
    assert 0.2 < (expected < 0).float().mean() < 0.8
    assert torch.equal(predictor(picture())["sem_seg_labels"].long(), expected)
    Image.fromarray(picture()[:, :, ::-1]).save(tmp_path / "a.png")
    mapper = ZeroShotDatasetMapper(cfg, is_train=False, dataset_name=cfg.DATASETS.TEST[0])
    evaluated = predictor.model([mapper({"file_name": str(tmp_path / "a.png")})])[0]
    assert torch.equal(evaluated["sem_seg_labels"].long(), expected)


def test_a_single_class_is_warned_about(
    cfg: CfgNode, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("tagclip"), "propagate", True)
    predictor = TagCLIPPredictor(cfg)
    predictor.set_vocabulary(["cat"], context=["dog"])
    assert "gets every pixel" not in caplog.text
    predictor.set_vocabulary(["cat"], context=["Cat"])
    assert "The only class, 'cat', gets every pixel" in caplog.text


def test_context_may_have_ids_and_ignored_values_of_its_own(predictor: TagCLIPPredictor) -> None:
    entries = (ClassEntry(9, "cat"), ClassEntry(7, "grass", ids=(7, 3)), ClassEntry(0, "sky"))
    predictor.set_vocabulary(["dog"], context=Vocabulary("other", entries, more_ignored=(1, 2)))
    assert [entry.ids for entry in predictor.asked.all.classes] == [(0,), (1,), (2,), (3,)]


def test_a_vocabulary_is_encoded_once(predictor: TagCLIPPredictor) -> None:
    bank = predictor.model.text_bank
    predictor.set_vocabulary(WORDS)
    count = bank.num_text_forwards
    predictor(picture())
    predictor.set_vocabulary(["dog"], context=WORDS)
    predictor.set_vocabulary(WORDS, seen=[True, True, False])
    predictor(picture())
    assert bank.num_text_forwards == count + 1


@pytest.mark.parametrize("as_list", [False, True])
def test_a_call_answers_for_the_words_with_which_it_began(
    predictor: TagCLIPPredictor, monkeypatch: pytest.MonkeyPatch, as_list: bool
) -> None:
    predictor.set_vocabulary(WORDS)
    preparer = predictor.preparer

    class Interrupting(ImagePreparer):
        def __call__(self, *args: Any, **options: Any) -> PreparedImage:
            predictor.set_vocabulary(["dog", "grass"])
            return preparer(*args, **options)

    monkeypatch.setattr(predictor, "preparer", Interrupting(preparer.inputs, "RGB", 0))
    found = predictor([picture()])[0] if as_list else predictor(picture())
    assert found["class_names"] == WORDS and predictor.vocabulary.names == ["dog", "grass"]


@pytest.fixture
def restless_threads() -> Iterator[ThreadPoolExecutor]:
    """Threads that take turns after a microsecond."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    with ThreadPoolExecutor(4) as pool:
        yield pool
    sys.setswitchinterval(interval)


def test_threads_give_the_results_of_a_series(
    predictor: TagCLIPPredictor, restless_threads: ThreadPoolExecutor
) -> None:
    predictor.set_vocabulary(WORDS, context=["dog"])
    images = [picture(40 + 20 * (i % 3), 60 + 15 * (i % 2), i) for i in range(12)]
    expected = [predictor(image) for image in images]
    found = restless_threads.map(predictor, images)
    for result, other in zip(found, expected, strict=True):
        assert_same(result, other)


def test_threads_share_the_cached_position_table(
    predictor: TagCLIPPredictor, restless_threads: ThreadPoolExecutor
) -> None:
    """Images of other shapes replace it all the time."""
    backbone = predictor.model.backbone
    grids = [(3 + i % 3, 5) for i in range(8000)]
    for grid, table in zip(grids, restless_threads.map(backbone._positions, grids), strict=True):
        assert len(table) == 1 + grid[0] * grid[1]


def test_from_checkpoint_takes_its_config(cfg: CfgNode, tmp_path: Path) -> None:
    found = TagCLIPPredictor.from_checkpoint(cfg.MODEL.WEIGHTS)
    assert_same(found(picture()), TagCLIPPredictor(cfg)(picture()))
    assert found.cfg.MODEL.CLIP.NAME == cfg.MODEL.CLIP.NAME
    changed_cfg = checkpoint_config(cfg.MODEL.WEIGHTS, ["MODEL.TAGCLIP.TEST.GATE", "none"])
    assert changed_cfg.MODEL.TAGCLIP.TEST.GATE == "none"
    assert cfg.MODEL.WEIGHTS == changed_cfg.MODEL.WEIGHTS
    with pytest.raises(ConfigError, match="unknown config key GATES"):
        checkpoint_config(cfg.MODEL.WEIGHTS, ["GATES", "none"])


@pytest.fixture
def own(tiny_cfg: CfgNode, tmp_path: Path) -> Iterator[CfgNode]:
    """Config of a model of data in a folder of one's own, with CLIP's files beside it."""
    home = tmp_path / "home" / "data"
    home.mkdir(parents=True)
    vocabulary = tiny_tree()
    vocabulary["classes"][0] |= {"prompts": ["cat", "kitten"], "color": [1, 2, 3]}
    write_json(home / "classes.json", vocabulary)
    write_json(home / "clip.json", MERGED_CLIP)
    (home / "merges.txt.gz").write_bytes(gzip.compress(b"#version\nc a\n"))
    save_file(dict(random_clip(MERGED_CLIP).state_dict()), home / "clip.safetensors")
    names = [f"own_{subset}_{tmp_path.name}" for subset in ("train", "val")]
    entries = [
        {"name": name, "images": f"{home}/i", "labels": f"{home}/l"}
        | {"vocabulary": str(home / "classes.json")}
        for name in names
    ]
    yield changed(
        tiny_cfg,
        "DATASETS.FOLDER_DATASETS", entries,
        "DATASETS.TRAIN", (names[0],),
        "DATASETS.TEST", (names[1],),
        "MODEL.CLIP.NAME", str(home / "clip.json"),
        "MODEL.CLIP.PRETRAINED", str(home / "clip.safetensors"),
        "MODEL.CLIP.TEXT_CACHE", str(home / "cache"),
        "OUTPUT_DIR", str(home / "output"),
    )  # fmt: skip
    forget(*names)


def answer(predictor: TagCLIPPredictor, question: Any) -> dict[str, Any]:
    """The result for the picture; None asks what is asked at first."""
    if question is not None:
        predictor.set_vocabulary(question, context=["grass"] if question == WORDS else None)
    return predictor(picture())


def test_a_checkpoint_needs_no_file_of_its_training_but_clips_weights(
    own: CfgNode, tmp_path: Path
) -> None:
    """Class lists, CLIP's json and its tokenizer come with it; in the process that trained, too."""
    saved = save_tiny(own, Path(own.OUTPUT_DIR))
    here = TagCLIPPredictor.from_checkpoint(saved)
    home, elsewhere = saved.parents[1], tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved, clip = elsewhere / "m.pth", elsewhere / "clip.safetensors"
    moved.write_bytes(saved.read_bytes())
    clip.write_bytes((home / "clip.safetensors").read_bytes())
    write_json(home / "classes.json", tiny_tree(name="another") | {"splits": {}})
    with pytest.raises(CheckpointError) as caught:
        TagCLIPPredictor.from_checkpoint(moved)
    sha256 = here.model.backbone.weights_sha256
    for part in (f"{moved}: was moved or copied", "./../clip.safetensors", sha256, "PRETRAINED"):
        assert part in str(caught.value)
    questions = (None, WORDS, own.DATASETS.TEST[0])
    expected = [answer(here, question) for question in questions]
    home.rename(tmp_path / "gone")
    there = TagCLIPPredictor.from_checkpoint(moved, ["MODEL.CLIP.PRETRAINED", str(clip)])
    for question, result in zip(questions, expected, strict=True):
        assert_same(answer(there, question), result)
    assert there.vocabulary == here.vocabulary
    assert there.vocabulary.prompts[0] == ("cat", "kitten")
    assert there.vocabulary.classes[0].color == (1, 2, 3)
    assert there.model.train_vocabulary == here.model.train_vocabulary
    assert not (tmp_path / "cache").exists(), "nobody has asked for one here"
    again = save_tiny(there.cfg, elsewhere / "again")
    stored = read_checkpoint(again)["tagclip"]
    first = read_checkpoint(moved)["tagclip"]
    assert all(stored[key] == first[key] for key in ("vocabularies", "clip_json", "clip_merges"))


def test_clips_weights_are_found_among_the_projects(
    own: CfgNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint of earlier code holds no model json either."""
    root = tmp_path / "checkout"
    folder = root / "projects" / "Mine"
    folder.mkdir(parents=True)
    for file in Path(own.MODEL.CLIP.NAME).parent.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    clip = ("MODEL.CLIP.NAME", "MODEL.CLIP.PRETRAINED")
    files = (str(folder / "clip.json"), str(folder / "clip.safetensors"))
    opts = [word for pair in zip(clip, files, strict=True) for word in pair]
    saved = save_tiny(changed(own, *opts, "OUTPUT_DIR", str(root / "output")), root / "output")
    content = torch.load(saved)
    for key in ("clip_json", "clip_merges"):
        del content["tagclip"][key]
    moved = tmp_path / "moved.pth"
    torch.save(content, moved)
    with pytest.raises(CheckpointError, match=r"moved\.pth: was moved .* ./../projects/Mine/clip"):
        TagCLIPPredictor.from_checkpoint(moved)
    monkeypatch.setattr("tagclip.projects.ROOT", str(root))
    found = TagCLIPPredictor.from_checkpoint(moved)
    assert files == (found.cfg.MODEL.CLIP.NAME, found.cfg.MODEL.CLIP.PRETRAINED)


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("vocabularies", ["a"], "expected a dict of texts by name"),
        ("vocabularies", {"a": 1}, "expected a dict of texts by name"),
        ("clip_json", 3, "expected a str"),
        ("config", "DATASETS: 3", "found DATASETS 3 in its config"),
    ],
)
def test_damaged_contents_are_refused(cfg: CfgNode, key: str, value: Any, found: str) -> None:
    content = torch.load(cfg.MODEL.WEIGHTS)
    content["tagclip"][key] = value
    torch.save(content, cfg.MODEL.WEIGHTS)
    with pytest.raises(CheckpointError, match=rf"model_final\.pth: .*{found}"):
        TagCLIPPredictor.from_checkpoint(cfg.MODEL.WEIGHTS)


@pytest.mark.parametrize("metadata", [None, {}, {"config": "a: [1"}, {"config": "- 1"}])
def test_a_checkpoint_without_config_is_refused(metadata: dict | None, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"model": {}} | ({} if metadata is None else {"tagclip": metadata}), path)
    with pytest.raises(CheckpointError, match=r"x\.pth: found no config in it"):
        TagCLIPPredictor.from_checkpoint(path)


def test_weights_are_needed(tiny_cfg: CfgNode) -> None:
    with pytest.raises(CheckpointError, match="MODEL.WEIGHTS is empty"):
        TagCLIPPredictor(tiny_cfg)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_without_a_gpu_the_cpu_is_used(cfg: CfgNode) -> None:
    cfg = changed(cfg, "MODEL.DEVICE", "cuda", "MODEL.TAGCLIP.TEST.OUTPUT", "scores")
    predictor = TagCLIPPredictor(cfg)
    assert (predictor.model.device.type, predictor.cfg.MODEL.DEVICE) == ("cpu", "cpu")
    assert cfg.MODEL.DEVICE == "cuda"


def test_words_get_the_colours_that_the_training_json_gives(
    tiny_cfg: CfgNode, tiny_vocabulary_json: str, tmp_path: Path
) -> None:
    """Whatever list they are asked in; other words get those of their names."""
    tree = json.loads(Path(tiny_vocabulary_json).read_text())
    for index, entry in enumerate(tree["classes"]):
        entry["color"] = [index, 7, 9]
    entry = {"name": f"colored_{tmp_path.name}", "images": "i", "labels": "l"}
    entry["vocabulary"] = str(write_json(tmp_path / "colored.json", tree))
    cfg = changed(tiny_cfg, "DATASETS.FOLDER_DATASETS", [entry], "DATASETS.TRAIN", [entry["name"]])
    predictor = TagCLIPPredictor.from_checkpoint(save_tiny(cfg, tmp_path / "output"))
    given = dict(zip((c["name"] for c in tree["classes"]), range(5), strict=True))
    for words in (["zebra", *given], [name.upper() for name in given][::-1]):
        predictor.set_vocabulary(words, context=["dog house"])
        for name, color in zip(words, predictor.vocabulary.colors.tolist(), strict=True):
            place = given.get(name.lower())
            assert color == (list(name_color(name)) if place is None else [place, 7, 9])
