"""From files to training samples: the mapper, its earlier sequence of operations, and mmseg's
pipeline where mmseg can be imported; all on one core."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.data.transforms import AugInput, AugmentationList, ColorTransform
from fvcore.transforms.transform import Transform
from PIL import Image

from tagclip.data.augmentation import (
    CategoryCrop,
    PhotometricChange,
    PhotometricDistortion,
    build_train_augmentations,
)
from tagclip.data.dataset_mapper import ZeroShotDatasetMapper
from tagclip.data.label_io import check_label, read_label
from tagclip.projects.benchmark.findings import Findings
from tagclip.projects.benchmark.measure import Timing, alternate
from tagclip.projects.benchmark.workload import Workload
from tagclip.structures.vocabulary import Vocabulary

__all__ = ["loading"]

_FILES, _CLASSES = 6, 19
# Bound of the short and the long side that the factor, 0.5 to 2, multiplies.
_SHORT, _LONG = 512, 2048
# Bar and goal of images/s over mmseg's, by the number of pixels above which they hold.
_BARS = {0: (1.5, 2), 1_000_000: (1.2, 1.5)}
_MMSEG = "mmsegmentation's pipeline"


def loading(workload: Workload, runs: int) -> Findings:
    """JPEG photo and PNG label to a 512x512 sample: resize, crop, flip, colours."""
    found = Findings("loading")
    threads = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    try:
        for size in workload.scale.samples:
            _measure(found, workload, size, runs)
    finally:
        cv2.setNumThreads(threads[0])
        torch.set_num_threads(threads[1])
    return found


def _measure(found: Findings, workload: Workload, size: tuple[int, int], runs: int) -> None:
    samples = _write(Path(workload.image).parent.with_name("samples"), size)
    vocabulary = Vocabulary.from_names(list(map(str, range(_CLASSES))), [True] * _CLASSES)
    keys = ["INPUT.MIN_SIZE_TRAIN", (_SHORT,), "INPUT.MAX_SIZE_TRAIN", _LONG]
    keys += ["INPUT.MIN_SIZE_TRAIN_SAMPLING", "choice", "INPUT.RANDOM_FLIP", "horizontal"]
    cfg = workload.cfg.clone()
    cfg.merge_from_list(keys)
    mapper = partial(
        ZeroShotDatasetMapper,
        is_train=True,
        augmentations=build_train_augmentations(cfg, vocabulary.ignore_index),
        image_format="RGB",
        source_vocabulary=vocabulary,
        target_vocabulary=vocabulary,
        novel_masks=False,
        max_pixels=cfg.INPUT.MAX_PIXELS,
    )
    ways = {"mapper": mapper(), "earlier": _Earlier(cfg, vocabulary)}
    ways["reduced"] = mapper(reduced_jpeg=True)
    _refuse_difference(ways["mapper"], ways["earlier"], samples)
    if pipeline := _mmseg_pipeline(cfg.INPUT.CROP.SIZE):
        ways["mmseg"] = pipeline
    functions = {key: partial(_all, way, samples, count()) for key, way in ways.items()}
    times = alternate(functions, 4 * runs)
    name = f"{size[1]}x{size[0]}"
    texts = {"mapper": "mapper", "earlier": "earlier sequence of operations", "mmseg": _MMSEG}
    texts["reduced"] = "mapper, INPUT.REDUCED_JPEG"
    for key, text in texts.items():
        each = times.get(key) and Timing(tuple(t / len(samples) for t in times[key].runs))
        found.add(f"{name}: {text}", each)
    found.add(f"{name}: earlier over mapper", times["earlier"].over(times["mapper"]), "x")
    if "mmseg" in times:
        ratio = times["mapper"].over(times["mmseg"])
        bar, goal = next(pair for least, pair in reversed(_BARS.items()) if np.prod(size) >= least)
        what = f"{name}: mapper's time over {_MMSEG}"
        found.add_bar(what, ratio, "x", 1 / bar, 1 / goal)


def _write(folder: Path, size: tuple[int, int]) -> list[dict[str, str]]:
    """Photos that are as hard to decode as real ones, and labels with curved borders."""
    folder.mkdir(exist_ok=True)
    rng, (height, width), samples = np.random.default_rng(0), size, []

    def smooth(cell: int, channels: int) -> np.ndarray:
        noise = rng.normal(size=(height // cell + 3, width // cell + 3, channels))
        return cv2.resize(noise.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)

    for number in range(_FILES):
        photo = sum(cell**0.8 * smooth(cell, 3) for cell in (256, 128, 64, 32, 16, 8, 4, 2, 1))
        photo = cv2.normalize(photo, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
        planes = smooth(60, _CLASSES)
        # Two classes are frequent, as road and sky are.
        planes[..., :2] += 2
        label = planes.argmax(axis=2).astype(np.uint8)
        label[planes[..., 0] > 4.2] = 255
        stem = folder / f"{width}x{height}_{number}"
        Image.fromarray(photo).save(stem.with_suffix(".jpg"), quality=90)
        Image.fromarray(label).save(stem.with_suffix(".png"))
        names = {"file_name": ".jpg", "sem_seg_file_name": ".png"}
        samples.append({key: str(stem.with_suffix(suffix)) for key, suffix in names.items()})
    return samples


def _all(
    way: Callable[[dict[str, Any]], Any], samples: Sequence[dict[str, str]], seeds: Iterator[int]
) -> None:
    # Another seed in each run: the same draws mean another resize to mmseg, so that only means
    # over many draws compare.
    np.random.seed(next(seeds))
    for sample in samples:
        way(sample)


def _refuse_difference(one: Callable, other: Callable, samples: Sequence[dict[str, str]]) -> None:
    for seed, sample in enumerate(samples):
        results = []
        for way in (one, other):
            np.random.seed(seed)
            results.append(way(sample))
        if not all(torch.equal(results[0][key], results[1][key]) for key in ("image", "sem_seg")):
            raise RuntimeError(f"{sample['file_name']}: the sample is not what it was earlier")


class _Earlier:
    """The mapper's operations before they were made faster, with the same result."""

    def __init__(self, cfg: Any, vocabulary: Vocabulary) -> None:
        resize, crop, flip, _ = build_train_augmentations(cfg, vocabulary.ignore_index)
        crop = _EarlierCrop(crop.size, crop.max_area, crop.ignore_index)
        self.augmentations = AugmentationList([resize, crop, flip, _EarlierDistortion("RGB")])
        self.vocabulary = vocabulary
        self.lut = vocabulary.label_lut().astype(np.uint8)

    def __call__(self, sample: dict[str, Any]) -> dict[str, torch.Tensor]:
        with Image.open(sample["file_name"]) as image:
            pixels = np.asarray(image.convert("RGB"))
        path = sample["sem_seg_file_name"]
        label = read_label(path, self.vocabulary)
        check_label(label, path, self.vocabulary, pixels.shape[:2])
        aug_input = AugInput(pixels, sem_seg=self.lut[label])
        self.augmentations(aug_input)
        return {
            "image": torch.from_numpy(aug_input.image.transpose(2, 0, 1).copy()),
            "sem_seg": torch.from_numpy(aug_input.sem_seg.copy()),
        }


class _EarlierCrop(CategoryCrop):
    def accepts(self, sem_seg: np.ndarray) -> bool:
        counts = np.bincount(sem_seg.ravel(), minlength=self.ignore_index + 1)
        counts[self.ignore_index] = 0
        counts = counts[counts > 0]
        return len(counts) > 1 and counts.max() < self.max_area * counts.sum()


class _EarlierDistortion(PhotometricDistortion):
    def get_transform(self, image: np.ndarray) -> Transform:
        return ColorTransform(partial(_earlier_change, super().get_transform(image).op))


def _earlier_change(change: PhotometricChange, image: np.ndarray) -> np.ndarray:
    image = _earlier_linear(image, 1.0, change.brightness)
    if change.contrast_first:
        image = _earlier_linear(image, change.contrast, 0.0)
    if change.saturation != 1 or change.hue:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[:, :, 1] = _earlier_linear(hsv[:, :, 1], change.saturation, 0.0)
        hsv[:, :, 0] = (hsv[:, :, 0].astype(np.int16) + change.hue) % 180
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return image if change.contrast_first else _earlier_linear(image, change.contrast, 0.0)


def _earlier_linear(array: np.ndarray, factor: float, offset: float) -> np.ndarray:
    if factor == 1 and offset == 0:
        return array
    table = np.clip(np.arange(256, dtype=np.float32) * factor + offset, 0, 255).astype(np.uint8)
    return cv2.LUT(np.ascontiguousarray(array), table)


def _mmseg_pipeline(crop: Sequence[int]) -> Callable[[dict[str, Any]], Any] | None:
    """That of its configs for COCO-Stuff; None without mmsegmentation and mmcv."""
    try:
        from mmcv.transforms import Compose, LoadImageFromFile, RandomFlip, RandomResize
        from mmseg.datasets import transforms
        from mmseg.utils import register_all_modules
    except (ImportError, AssertionError):
        return None
    register_all_modules(init_default_scope=True)
    steps = [
        LoadImageFromFile(),
        transforms.LoadAnnotations(),
        RandomResize(scale=(_LONG, _SHORT), ratio_range=(0.5, 2.0), keep_ratio=True),
        transforms.RandomCrop(crop_size=tuple(crop), cat_max_ratio=0.75),
        RandomFlip(prob=0.5),
        transforms.PhotoMetricDistortion(),
        transforms.PackSegInputs(),
    ]
    rest = {"reduce_zero_label": False, "label_map": None}
    pipeline = Compose(steps)

    def run(sample: dict[str, Any]) -> Any:
        paths = {"img_path": sample["file_name"], "seg_map_path": sample["sem_seg_file_name"]}
        return pipeline({**paths, **rest, "seg_fields": []})

    return run
