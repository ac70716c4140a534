"""Mean, deviation and interpolation of images that a config leaves to CLIP's weights."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from helpers.clip_files import FORMATS, random_clip, write_json
from helpers.tiny_run import changed, write_tiny_dataset
from PIL import Image

from tagclip import TagCLIPPredictor, ZeroShotTrainer, load_config, model_zoo
from tagclip.checkpoint import checkpoint_metadata
from tagclip.data.inference_input import InferenceInput, ResizeTransform
from tagclip.errors import ConfigError
from tagclip.export.runtime.images import resize_image
from tagclip.modeling.clip import resolve_pixels

HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
PAIRS = [
    (m, t) for m in open_clip.list_models() for t in open_clip.list_pretrained_tags_by_model(m)
]


@pytest.fixture
def open_cfg(tiny_cfg: CfgNode) -> CfgNode:
    """Everything is left to the weights."""
    tiny_cfg.MODEL.PIXEL_MEAN, tiny_cfg.MODEL.PIXEL_STD = [], []
    tiny_cfg.INPUT.INTERPOLATION, tiny_cfg.INPUT.RESIZE = "weights", "pil"
    return tiny_cfg


def in_force(cfg: CfgNode) -> tuple[list[float], list[float], str]:
    return list(cfg.MODEL.PIXEL_MEAN), list(cfg.MODEL.PIXEL_STD), cfg.INPUT.INTERPOLATION


def saved(folder: Path, preprocess: dict[str, Any]) -> Path:
    """Weights of the tiny CLIP with a json beside them."""
    path = FORMATS["open_clip folder, safetensors"](random_clip(), folder)
    config = json.loads((path / "open_clip_config.json").read_text())
    write_json(path / "open_clip_config.json", config | {"preprocess_cfg": preprocess})
    return path


@pytest.mark.parametrize(("name", "tag"), PAIRS)
def test_a_tag_is_known_without_a_download(name: str, tag: str, open_cfg: CfgNode) -> None:
    cfg = changed(open_cfg, "MODEL.CLIP.NAME", name, "MODEL.CLIP.PRETRAINED", tag)
    try:
        found = in_force(resolve_pixels(cfg))
    except ConfigError as error:
        assert "QuickGELU" in str(error) or "MODEL.CLIP.NAME" in str(error)
        return
    own = open_clip.get_pretrained_cfg(name, tag)
    assert found[0] == pytest.approx([255 * value for value in own["mean"]], abs=1e-4)
    assert found[1] == pytest.approx([255 * value for value in own["std"]], abs=1e-4)
    assert found[2] == own["interpolation"]


def test_channels_follow_the_format(open_cfg: CfgNode) -> None:
    opts = ("MODEL.CLIP.NAME", "ViT-B-16-quickgelu", "MODEL.CLIP.PRETRAINED", "openai")
    rgb = resolve_pixels(changed(open_cfg, *opts, "INPUT.FORMAT", "RGB"))
    bgr = resolve_pixels(changed(open_cfg, *opts, "INPUT.FORMAT", "BGR"))
    assert in_force(bgr)[0] == in_force(rgb)[0][::-1] != in_force(rgb)[0]


def test_the_json_beside_the_weights_counts(open_cfg: CfgNode, tmp_path: Path) -> None:
    path = saved(tmp_path, HALF | {"interpolation": "bilinear"})
    cfg = resolve_pixels(changed(open_cfg, "MODEL.CLIP.PRETRAINED", str(path)))
    assert in_force(cfg) == ([127.5] * 3, [127.5] * 3, "bilinear")


def test_random_weights_have_open_clips_defaults(open_cfg: CfgNode) -> None:
    mean, std, interpolation = in_force(resolve_pixels(open_cfg))
    assert mean == pytest.approx([122.7709, 116.746, 104.0937], abs=1e-3)
    assert std == pytest.approx([68.5005, 66.6322, 70.3232], abs=1e-3)
    assert interpolation == "bicubic"


def test_a_bare_file_has_what_all_tags_say(
    open_cfg: CfgNode, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "clip.safetensors").write_bytes(b"")
    file = str(tmp_path / "clip.safetensors")
    cfg = changed(open_cfg, "MODEL.CLIP.NAME", "ViT-B-16-quickgelu", "MODEL.CLIP.PRETRAINED", file)
    with caplog.at_level(logging.INFO, "tagclip"):
        assert in_force(resolve_pixels(cfg))[0][0] == pytest.approx(122.7709, abs=1e-3)
    assert "taken from the tags of ViT-B-16-quickgelu" in caplog.text
    cfg.MODEL.CLIP.NAME = "ViT-L-14"
    with pytest.raises(ConfigError, match=r"the tags of ViT-L-14 differ .*laion2b_s32b_b82k") as e:
        resolve_pixels(cfg)
    assert "\n" not in str(e.value)
    # What the message says ends it.
    mended = changed(cfg, "MODEL.PIXEL_MEAN", [1.0] * 3, "MODEL.PIXEL_STD", [2.0] * 3)
    assert in_force(resolve_pixels(mended))[1] == [2.0] * 3


def test_numbers_stay_as_they_are(tiny_cfg: CfgNode) -> None:
    assert resolve_pixels(tiny_cfg) is tiny_cfg


@pytest.mark.parametrize("key", ["MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"])
def test_one_alone_may_not_be_empty(key: str, tiny_cfg: CfgNode) -> None:
    with pytest.raises(ConfigError, match="expected both"):
        resolve_pixels(changed(tiny_cfg, key, []))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_other_lengths_are_refused(count: int, tiny_cfg: CfgNode) -> None:
    with pytest.raises(ConfigError, match=r"MODEL\.PIXEL_MEAN: .*expected a list of 0 or 3"):
        build_model(changed(tiny_cfg, "MODEL.PIXEL_MEAN", [1.0] * count))


def test_model_trainer_and_checkpoint_have_the_numbers(open_cfg: CfgNode, tmp_path: Path) -> None:
    write_tiny_dataset(tmp_path)
    path = saved(tmp_path, HALF | {"interpolation": "bicubic"})
    cfg = changed(open_cfg, "MODEL.CLIP.PRETRAINED", str(path), "SEED", 0)
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    assert build_model(cfg).pixel_mean.flatten().tolist() == [127.5] * 3
    trainer = ZeroShotTrainer(cfg)
    assert in_force(trainer.cfg) == ([127.5] * 3, [127.5] * 3, "bicubic")
    stored = yaml.safe_load(checkpoint_metadata(trainer.cfg, trainer.model)["config"])
    assert stored["MODEL"]["PIXEL_MEAN"] == stored["MODEL"]["PIXEL_STD"] == [127.5] * 3
    assert stored["INPUT"]["INTERPOLATION"] == "bicubic"
    trainer.checkpointer.save("model")
    weights = str(tmp_path / "out" / "model.pth")
    predictor = TagCLIPPredictor(changed(cfg, "MODEL.WEIGHTS", weights))
    assert in_force(predictor.cfg) == in_force(trainer.cfg)
    resize = predictor.preparer.inputs.views[0].augmentations[0]
    assert (resize.library, resize.interpolation) == ("pil", "bicubic")


def test_a_resize_needs_to_know(open_cfg: CfgNode) -> None:
    with pytest.raises(ConfigError, match=r"INPUT\.INTERPOLATION: .*resolve_pixels"):
        InferenceInput.from_config(open_cfg)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(40, 60), (17, 23), (90, 111)])
def test_with_pillow_it_is_open_clips_resize(interpolation: str, size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    transform = open_clip.image_transform(
        size, is_train=False, mean=(0, 0, 0), std=(1, 1, 1), resize_mode="squash",
        interpolation=interpolation,
    )  # fmt: skip
    expected = (transform(Image.fromarray(image)) * 255).round().permute(1, 2, 0).to(torch.uint8)
    found = ResizeTransform(60, 80, *size, "pil", interpolation).apply_image(image)
    assert np.array_equal(found, expected.numpy())
    assert np.array_equal(resize_image(image, size, "pil", interpolation), found)
    other = "bicubic" if interpolation == "bilinear" else "bilinear"
    assert not np.array_equal(
        ResizeTransform(60, 80, *size, "pil", other).apply_image(image), found
    )
    cv2 = ResizeTransform(60, 80, *size, "cv2", interpolation).apply_image(image)
    assert cv2.shape == found.shape and not np.array_equal(cv2, found)


@pytest.mark.parametrize("name", model_zoo.list())
def test_only_the_towers_leave_it_to_the_weights(name: str) -> None:
    cfg = load_config(name)
    is_open = name.startswith("towers/") or name == "trainingfree/Base-AnyWords.yaml"
    assert (cfg.MODEL.PIXEL_MEAN == []) == (cfg.MODEL.PIXEL_STD == []) == is_open
    assert (cfg.INPUT.INTERPOLATION == "weights") == is_open


@pytest.mark.parametrize("used", ["bilinear", "bicubic"])
def test_another_interpolation_is_logged(
    used: str, tiny_cfg: CfgNode, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = saved(tmp_path, HALF | {"interpolation": "bicubic"})
    cfg = changed(tiny_cfg, "MODEL.CLIP.PRETRAINED", str(path), "INPUT.INTERPOLATION", used)
    with caplog.at_level(logging.INFO, "tagclip"):
        build_model(cfg)
    said = "resized by bicubic interpolation; INPUT.INTERPOLATION bilinear" in caplog.text
    assert said == (used == "bilinear")
