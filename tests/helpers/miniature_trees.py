"""Small trees in the genuine layouts and encodings of the benchmarks, and running the scripts."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from helpers.paths import REPOSITORY
from helpers.toy_dataset import forget
from PIL import Image
from scipy.io import savemat

import tagclip
from tagclip.data.datasets import builtin

COCO_HOLES = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
COCO_VALUES = tuple(v for v in range(182) if v not in COCO_HOLES)
SIZE = (18, 24)

Labels = dict[str, np.ndarray]


def script(name: str) -> ModuleType:
    """Module of a file in `datasets/`."""
    folder = str(REPOSITORY / "datasets")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(name)


def class_names(vocabulary: str) -> list[str]:
    """Class names in the order of the committed json."""
    path = REPOSITORY / "tagclip" / "data" / "datasets" / "vocabularies" / f"{vocabulary}.json"
    return [entry["name"] for entry in json.loads(path.read_text())["classes"]]


def random_label(values: Sequence[int], seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """(H, W) int32 of 3 x 3 blocks of random values."""
    grid = np.random.default_rng(seed).choice(values, (size[0] // 3, size[1] // 3))
    return grid.repeat(3, axis=0).repeat(3, axis=1).astype(np.int32)


def write_jpg(path: Path, seed: int, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_gray(path: Path, label: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(label.astype(np.uint8)).save(path)


def write_palette(path: Path, label: np.ndarray) -> None:
    """A palette PNG as VOC has them: void is index 255."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(label.astype(np.uint8))
    palette = [(37 * value % 256, 91 * value % 256, 53 * value % 256) for value in range(256)]
    image.putpalette([channel for color in palette for channel in color])
    image.save(path)


def write_list(path: Path, names: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names))


def read_png(path: Path) -> np.ndarray:
    """Values as they are stored."""
    with Image.open(path) as image:
        return np.array(image)


def make_voc(root: Path) -> dict[str, Labels]:
    """VOC 2012 and SBD: 2 + 3 training images, 2 validation images; raw labels of each part."""
    voc, sbd = root / "VOCdevkit" / "VOC2012", root / "benchmark_RELEASE" / "dataset"
    names = {
        "train": ["2007_000032", "2007_000039"],
        "val": ["2007_000033", "2007_000042"],
        "aug": ["2008_000002", "2008_000003", "2009_000001"],
    }
    values = {"train": [*range(21), 255], "val": [*range(21), 255], "aug": [*range(21)]}
    raw: dict[str, Labels] = {}
    for part, stems in names.items():
        for seed, stem in enumerate(stems):
            label = random_label(values[part], seed + 10 * len(part))
            raw.setdefault(part, {})[stem] = label
            write_jpg(voc / "JPEGImages" / f"{stem}.jpg", seed)
            if part != "aug":
                write_palette(voc / "SegmentationClass" / f"{stem}.png", label)
    write_jpg(voc / "JPEGImages" / "2011_000001.jpg", 0)
    for part in ("train", "val"):
        write_list(voc / "ImageSets" / "Segmentation" / f"{part}.txt", names[part])
    # SBD has labels of its own for images of VOC, also of its validation set.
    write_list(sbd / "train.txt", [*names["aug"][:2], names["val"][0]])
    write_list(sbd / "val.txt", [names["aug"][2], names["train"][0]])
    (sbd / "cls").mkdir(parents=True)
    other = random_label(range(21), 99)
    for stem in [*names["aug"], names["val"][0], names["train"][0]]:
        label = raw["aug"].get(stem, other).astype(np.uint8)
        segmentation = {
            "Boundaries": np.zeros((20, 1), dtype=object),
            "Segmentation": label,
            "CategoriesPresent": np.unique(label[label > 0])[:, None],
        }
        savemat(sbd / "cls" / f"{stem}.mat", {"GTcls": segmentation}, do_compression=True)
    return raw


def make_coco(
    root: Path, images: str = "coco/{}", labels: str = "coco/stuffthingmaps/{}"
) -> Labels:
    """COCO-Stuff 164k: 3 training and 2 validation images; raw labels."""
    raw = {}
    for subset, ids in (("train2017", (9, 25, 30)), ("val2017", (139, 285))):
        for number in ids:
            stem = f"{number:012d}"
            raw[stem] = random_label([*COCO_VALUES, 255], number)
            write_jpg(root / images.format(subset) / f"{stem}.jpg", number)
            write_gray(root / labels.format(subset) / f"{stem}.png", raw[stem])
    return raw


def make_context(root: Path, mat: bool = True) -> Labels:
    """PASCAL Context: 3 training and 2 validation images of VOC 2010; raw labels 0..459."""
    voc = root / "VOCdevkit" / "VOC2010"
    names = {
        "train": ["2008_000002", "2008_000008", "2010_003345"],
        "val": ["2008_000009", "2010_006021"],
    }
    names59, names459 = class_names("context59"), class_names("context459")
    common = [names459.index(name) + 1 for name in names59]
    raw: Labels = {}
    for seed, stem in enumerate([*names["train"], *names["val"]]):
        raw[stem] = random_label([*common, *common, *range(460)], seed)
        write_jpg(voc / "JPEGImages" / f"{stem}.jpg", seed)
        write_palette(voc / "SegmentationClass" / f"{stem}.png", voc_view(raw[stem]))
        if mat:
            (voc / "trainval").mkdir(exist_ok=True)
            tree = {"LabelMap": raw[stem].astype(np.uint16)}
            savemat(voc / "trainval" / f"{stem}.mat", tree, do_compression=True)
    write_jpg(voc / "JPEGImages" / "2010_000001.jpg", 0)
    for part, stems in names.items():
        write_list(voc / "ImageSets" / "Main" / f"{part}.txt", stems)
    lines = [f"{number}: {name}" for number, name in enumerate(names459, start=1)]
    write_list(voc / "labels.txt", lines)
    return raw


def voc_view(label: np.ndarray) -> np.ndarray:
    """What VOC's own label shows of a Context label: 20 classes, the rest is background."""
    names459, names20 = class_names("context459"), class_names("voc20")
    table = np.zeros(460, dtype=np.int32)
    for value, name in enumerate(names20, start=1):
        table[names459.index("table" if name == "diningtable" else name) + 1] = value
    return table[label]


def context_ids(label: np.ndarray, order: Sequence[str], first: int) -> np.ndarray:
    """A Context label of another converter: ids from `first` on, the rest is first - 1."""
    names459 = class_names("context459")
    table = np.full(460, (first - 1) % 256, dtype=np.int32)
    for value, name in enumerate(order, start=first):
        table[names459.index(name) + 1] = value
    return table[label]


def make_ade150(root: Path) -> Labels:
    """ADEChallengeData2016: 2 training and 2 validation images; raw labels 0..150."""
    folder, raw = root / "ADEChallengeData2016", {}
    for subset, prefix in (("training", "train"), ("validation", "val")):
        for number in (1, 2):
            stem = f"ADE_{prefix}_{number:08d}"
            raw[stem] = random_label(range(151), number + len(prefix))
            write_jpg(folder / "images" / subset / f"{stem}.jpg", number)
            write_gray(folder / "annotations" / subset / f"{stem}.png", raw[stem])
    return raw


def make_ade_full(root: Path, numbers: Sequence[int]) -> Labels:
    """The full ADE20K: 2 validation images, one of them large; object numbers 0..6655."""
    raw = {}
    places = (("urban", "street", (540, 600)), ("home_or_hotel", "bedroom", SIZE))
    for index, (scene, kind, size) in enumerate(places, start=1):
        stem = f"ADE_val_{index:08d}"
        folder = root / "ADE20K_2021_17_01" / "images" / "ADE" / "validation" / scene / kind
        raw[stem] = random_label(numbers, index, size)
        write_jpg(folder / f"{stem}.jpg", index, size)
        # Red counts in tens, so that the last digit is free; blue numbers the instances.
        red, green = raw[stem] // 256 * 10 + index, raw[stem] % 256
        pixels = np.stack([red, green, np.full_like(red, 7)], axis=-1)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{stem}_seg.png")
    return raw


@contextmanager
def benchmarks_at(root: Path) -> Iterator[None]:
    """Register the benchmarks below another root for a while."""
    tagclip.register()
    names = [b.name for b in builtin.read_benchmarks().values()]
    names += [b.readable_name for b in builtin.read_benchmarks().values() if b.readable]
    before = {name: DatasetCatalog[name] for name in names}
    old_root = before["voc2012_val"].images.root.removesuffix("/VOCdevkit/VOC2012/JPEGImages")
    forget(*names)
    builtin.register_benchmarks(root)
    try:
        yield
    finally:
        forget(*names)
        builtin.register_benchmarks(old_root)


def snapshot(folder: Path) -> Mapping[str, bytes | str]:
    """Content of every file and target of every link below a folder."""
    return {
        str(path.relative_to(folder)): str(path.readlink())
        if path.is_symlink()
        else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def run_script(name: str, root: Path, *options: object) -> None:
    """Run a prepare script in this process, on a tree that is smaller than the real one."""
    argv = ["--root", root, "--workers", 1, "--allow-missing", *options]
    script(name).invoke_main([str(word) for word in argv])


def script_error(name: str, root: Path, *options: object) -> str:
    """The line with which a prepare script fails."""
    with pytest.raises(SystemExit) as caught:
        run_script(name, root, *options)
    message = str(caught.value.code)
    assert message.startswith("DatasetError: ") and "\n" not in message
    return message
