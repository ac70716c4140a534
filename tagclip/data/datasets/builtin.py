"""The benchmarks, which `tagclip.register` registers below ``$DETECTRON2_DATASETS``.

Nothing is read from that folder before a dataset is asked for. `datasets/README.md` tells how to
get and prepare the data.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from tagclip.data.datasets.register import register_zero_shot_sem_seg
from tagclip.errors import ConfigError
from tagclip.utils.files import expand_path

__all__ = ["Benchmark", "read_benchmarks", "register_benchmarks", "vocabulary_json"]

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Benchmark:
    """One dataset of `benchmarks.json`. Folders are relative to the root of all datasets.

    Attributes:
        name: registered name.
        images: folder of the images.
        labels: folder of the prepared label files.
        vocabulary: name of the class list, in the spelling of the released models.
        num_images: images of the whole benchmark.
        prepare: what ``tagclip prepare`` calls it.
        readable: class list with the same classes in everyday spelling; "" if there is none.
        label_ext: extension of the label files; tif has 16 bits.
    """

    name: str
    images: str
    labels: str
    vocabulary: str
    num_images: int
    prepare: str
    readable: str = ""
    label_ext: str = "png"

    @property
    def image_list(self) -> str:
        """File with the names of the images, written by the prepare script."""
        return f"{self.labels}.txt"

    @property
    def manifest(self) -> str:
        """Record of the prepare script (`LabelManifest`)."""
        return f"{self.labels}.json"

    @property
    def readable_name(self) -> str:
        """Registered name with the class list `readable`: voc2012_readable_val for voc2012_val."""
        dataset, subset = self.name.rsplit("_", 1)
        return f"{dataset}_readable_{subset}"


def vocabulary_json(name: str) -> Path:
    """Path of a class list that comes with the package."""
    return _FOLDER / "vocabularies" / f"{name}.json"


def read_benchmarks() -> dict[str, Benchmark]:
    """All benchmarks by name."""
    trees = json.loads((_FOLDER / "benchmarks.json").read_text(encoding="utf-8"))
    return {name: Benchmark(name, **tree) for name, tree in trees["datasets"].items()}


def _default_root() -> str:
    try:
        return expand_path(os.environ.get("DETECTRON2_DATASETS") or "datasets")
    except ConfigError as error:
        raise ConfigError(f"DETECTRON2_DATASETS: {error}") from error


def register_benchmarks(root: str | Path = "") -> None:
    """Register every benchmark; each that has two class lists under two names.

    Args:
        root: folder of all datasets; "": ``$DETECTRON2_DATASETS``, or else ``datasets``.

    Raises:
        ConfigError: ``$DETECTRON2_DATASETS`` is no path, see `expand_path`.
        DatasetError: a name belongs to another dataset.
    """
    root = Path(root or _default_root())
    for benchmark in read_benchmarks().values():
        names = {benchmark.name: benchmark.vocabulary}
        if benchmark.readable:
            names[benchmark.readable_name] = benchmark.readable
        for name, vocabulary in names.items():
            register_zero_shot_sem_seg(
                name,
                image_root=root / benchmark.images,
                sem_seg_root=root / benchmark.labels,
                vocabulary_json=vocabulary_json(vocabulary),
                label_ext=benchmark.label_ext,
                prepare_command=f"tagclip prepare {benchmark.prepare}",
                image_list=root / benchmark.image_list,
                manifest=root / benchmark.manifest,
            )
