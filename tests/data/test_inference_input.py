"""What the model takes at test time: one view as INPUT says, or those of TEST.AUG."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from helpers.tiny_run import changed
from helpers.toy_dataset import write_sample
from PIL import Image

from tagclip.data import ZeroShotDatasetMapper
from tagclip.data.inference_input import InferenceInput
from tagclip.errors import ConfigError

IMAGE = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)


def with_views(cfg: CfgNode, *opts: object) -> CfgNode:
    """Short sides 48 and 60, each of them mirrored, too."""
    views = ("TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (48, 60), "TEST.AUG.MAX_SIZE", 0)
    return changed(cfg, *views, *opts)


def planes(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def test_without_augmentation_there_is_one_view(tiny_cfg: CfgNode) -> None:
    sample = InferenceInput.from_config(tiny_cfg)(IMAGE)
    assert sample.keys() == {"image", "height", "width"}
    assert (sample["height"], sample["width"]) == (60, 90)
    assert torch.equal(sample["image"], planes(cv2.resize(IMAGE, (96, 64))))


def test_every_size_comes_as_it_is_and_mirrored(tiny_cfg: CfgNode) -> None:
    sample = InferenceInput.from_config(with_views(tiny_cfg))(IMAGE)
    assert (sample["height"], sample["width"]) == (60, 90)
    small = cv2.resize(IMAGE, (72, 48))
    expected = [(small, False), (small[:, ::-1], True), (IMAGE, False), (IMAGE[:, ::-1], True)]
    assert [view["mirrored"] for view in sample["views"]] == [flag for _, flag in expected]
    for view, (pixels, _) in zip(sample["views"], expected, strict=True):
        assert torch.equal(view["image"], planes(pixels))
    assert torch.equal(sample["image"], sample["views"][0]["image"])


def test_the_mirrored_view_of_a_mirrored_image_is_the_view_of_the_image(tiny_cfg: CfgNode) -> None:
    inputs = InferenceInput.from_config(with_views(tiny_cfg, "TEST.AUG.MIN_SIZES", (60,)))
    views, turned = inputs(IMAGE)["views"], inputs(np.ascontiguousarray(IMAGE[:, ::-1]))["views"]
    assert torch.equal(views[0]["image"], turned[1]["image"])
    assert torch.equal(views[1]["image"], turned[0]["image"])


@pytest.mark.parametrize("size", [(1, 1), (3, 1), (1, 3)])
def test_an_image_of_one_pixel_has_a_mirrored_view(
    size: tuple[int, int], tiny_cfg: CfgNode
) -> None:
    """numpy calls a mirrored axis of one pixel contiguous, torch does not take it."""
    image = IMAGE[: size[0], : size[1]]
    views = InferenceInput.from_config(with_views(tiny_cfg, "TEST.AUG.MIN_SIZES", (1,)))(image)
    assert torch.equal(views["views"][1]["image"], planes(image[:, ::-1].copy()))


def test_without_flip_and_with_a_bound(tiny_cfg: CfgNode) -> None:
    cfg = with_views(tiny_cfg, "TEST.AUG.FLIP", False, "TEST.AUG.MAX_SIZE", 75)
    views = InferenceInput.from_config(cfg)(IMAGE)["views"]
    assert [tuple(view["image"].shape) for view in views] == [(3, 48, 72), (3, 50, 75)]
    assert not any(view["mirrored"] for view in views)


def test_a_single_view_is_the_input_without_augmentation(tiny_cfg: CfgNode) -> None:
    cfg = with_views(tiny_cfg, "TEST.AUG.FLIP", False, "TEST.AUG.MIN_SIZES", (64,))
    single, plain = (InferenceInput.from_config(c)(IMAGE) for c in (cfg, tiny_cfg))
    assert single.keys() == plain.keys()
    assert torch.equal(single["image"], plain["image"])


def test_the_mapper_brings_the_views(tiny_cfg: CfgNode, tmp_path) -> None:
    sample = write_sample(tmp_path, "a", IMAGE, np.zeros(IMAGE.shape[:2], np.uint8))
    cfg = with_views(tiny_cfg, "INPUT.FORMAT", "BGR")
    found = ZeroShotDatasetMapper(cfg, is_train=False, dataset_name=cfg.DATASETS.TEST[0])(sample)
    expected = InferenceInput.from_config(cfg)(IMAGE[:, :, ::-1])["views"]
    for view, other in zip(found["views"], expected, strict=True):
        assert torch.equal(view["image"], other["image"])
    assert "sem_seg" not in found and len(found["vocabulary"]) == 5


@pytest.mark.parametrize("sizes", [(), (20,), (20, 30), (20, 31)])
def test_reduced_jpegs_have_the_same_sizes(tiny_cfg: CfgNode, sizes: tuple, tmp_path) -> None:
    """Of 60x91 pixels at half their size; the largest view has to fit into it."""
    path = tmp_path / "photo.jpg"
    smooth = Image.fromarray(IMAGE[:3, :3]).resize((91, 60), Image.Resampling.BICUBIC)
    smooth.save(path, quality=95)
    cfg = with_views(tiny_cfg, "TEST.AUG.MIN_SIZES", sizes or (9,), "INPUT.MIN_SIZE_TEST", 30)
    cfg.TEST.AUG.ENABLED = bool(sizes)
    results = []
    for reduced in (False, True):
        cfg.INPUT.REDUCED_JPEG = reduced
        mapper = ZeroShotDatasetMapper(cfg, is_train=False, dataset_name=cfg.DATASETS.TEST[0])
        results.append(mapper({"file_name": str(path)}))
    whole, small = results
    assert (small["height"], small["width"]) == (60, 91)
    pairs = [(whole, small), *zip(whole.get("views", []), small.get("views", []), strict=True)]
    for one, other in pairs:
        difference = (one["image"].int() - other["image"].int()).abs()
        assert difference.float().mean() < 4
        assert torch.equal(one["image"], other["image"]) == (31 in sizes)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("TEST.AUG.MIN_SIZES", (), r"TEST\.AUG\.MIN_SIZES: found \(\), expected .* one or more"),
        ("TEST.AUG.MIN_SIZES", (48, 0), r"TEST\.AUG\.MIN_SIZES: found \(48, 0\), expected"),
        ("TEST.AUG.MIN_SIZES", ("48",), r"TEST\.AUG\.MIN_SIZES: found \('48',\), expected"),
        ("TEST.AUG.MIN_SIZES", (0.5,), r"TEST\.AUG\.MIN_SIZES: found \(0\.5,\), expected"),
        ("TEST.AUG.MAX_SIZE", -1, r"TEST\.AUG\.MAX_SIZE: found -1, expected 0, or .* from 14"),
        ("INPUT.RESIZE", "nearest", r"INPUT\.RESIZE: found 'nearest'"),
    ],
)
def test_bad_values_are_one_line(tiny_cfg: CfgNode, key: str, value: object, message: str) -> None:
    cfg = with_views(tiny_cfg, key, value)
    with pytest.raises(ConfigError, match=message) as caught:
        ZeroShotDatasetMapper(cfg, is_train=False, dataset_name=cfg.DATASETS.TEST[0])
    assert "\n" not in str(caught.value)
