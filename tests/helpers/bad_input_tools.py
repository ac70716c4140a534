"""What the tests of bad data and bad vocabularies share, besides `bad_rows`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from detectron2.data import DatasetCatalog
from helpers.bad_rows import TOOLS, Bench, picture, refused
from helpers.tiny_run import CLASSES, VOID, load_tool
from helpers.toy_dataset import vocabulary_tree, write_json
from open_clip.model import CLIP
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from tagclip import (
    TagCLIPPredictor,
    Vocabulary,
    ZeroShotDatasetMapper,
    ZeroShotSemSegEvaluator,
    register_zero_shot_sem_seg,
)

NAMES, UNSEEN = ["cat", "dog", "grass", "sky", "sofa"], ["dog", "sky"]
NO_TEST = ("DATASETS.TEST", "()")


class DataBench(Bench):
    """A bench with the tiny dataset and calls of more tools."""

    def file(self, kind: str, subset: str) -> Path:
        """First of the "images" or "labels" of the "train" or "val" set."""
        _ = self.config
        return self.root / kind / subset / "0.png"

    def label(self, subset: str) -> np.ndarray:
        """(H, W) uint8 of the first label."""
        return np.array(Image.open(self.file("labels", subset)))

    def save_labels(self, label: np.ndarray | Callable[[np.ndarray], np.ndarray]) -> None:
        """Replace the first label of both sets by an array, or by what a function makes of it."""
        for subset in ("train", "val"):
            new = label(self.label(subset)) if callable(label) else label
            Image.fromarray(new).save(self.file("labels", subset))

    def register(self, tree: dict[str, Any] | Path, subset: str = "train", name: str = "") -> str:
        """Register a set under another name, with this vocabulary (tree or file)."""
        _ = self.config
        name = f"{name or subset}_{self.root.name}_{len(DatasetCatalog.list())}"
        if isinstance(tree, dict):
            tree = write_json(self.root / f"{name}.json", tree)
        folders = self.root / "images" / subset, self.root / "labels" / subset
        register_zero_shot_sem_seg(name, *folders, tree, image_ext="png")
        return name

    def training_on(self, name: str, *opts: Any) -> Callable[[], Any]:
        """Training on one dataset, for `refused`."""
        return self.training("DATASETS.TRAIN", f"('{name}',)", *NO_TEST, *opts)

    def evaluation_on(self, *names: str) -> Callable[[], Any]:
        """Evaluation on other datasets, for `refused`."""
        return self.evaluation(self.weights, "DATASETS.TEST", repr(names))

    def metrics(self, name: str) -> dict[str, Any]:
        """The metrics.json of an evaluation."""
        path = self.root / "evaluated" / "inference" / name / "metrics.json"
        return json.loads(path.read_text())

    def refused_label(self, *parts: Any) -> None:
        """Training and evaluation name the first label and leave no checkpoint and no result."""
        before = self.checkpoints() | {self.weights}
        for subset, call in (("train", self.training()), ("val", self.evaluation(self.weights))):
            refused(call, f"DatasetError: {self.file('labels', subset)}: ", *parts)
        assert self.checkpoints() == before
        assert not self.results()

    def results(self) -> list[Path]:
        """What evaluations wrote."""
        return [*self.root.rglob("inference/**/metrics.json"), *self.root.rglob("results.csv")]

    def checkpoints(self) -> set[Path]:
        """All of them."""
        return set(self.root.rglob("*.pth"))

    def validate(self, *names: str) -> tuple[int, dict[str, dict[str, Any]], str]:
        """Call tools/validate_dataset.py; return code, report by dataset, and what was printed."""
        tool, output = load_tool(TOOLS / "validate_dataset.py"), self.root / "validated"
        code = tool.main(tool.parse_args([*names, "--output", str(output), "--workers", "0"]))
        reports = {name: json.loads((output / name / "report.json").read_text()) for name in names}
        assert all((output / name / "histogram.png").stat().st_size for name in names)
        return code, reports, self.said()

    def asking(self, *arguments: Any) -> Callable[[], Any]:
        """Call of tools/demo.py on one image, for `refused`; writes to the folder ``out``."""
        tool, image = load_tool(TOOLS / "demo.py"), self.save_image("a.png")
        common = ["--weights", self.weights, "--input", image, "--output", self.root / "out"]
        args = tool.parse_args(list(map(str, [*common, *arguments])))
        return lambda: tool.run(args)


def tiny_tree(**changes: Any) -> dict[str, Any]:
    """Vocabulary of the tiny dataset, with other values of some keys."""
    return vocabulary_tree(NAMES, UNSEEN) | {"name": "tiny5"} | changes


def problems(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The problems and notes of a validation, by kind."""
    return {problem["kind"]: problem for problem in report["problems"]}


def assert_read_as(folder: Path, name: str, truth: Sequence[np.ndarray]) -> None:
    """The mapper and the evaluator read a dataset's label files as these.

    Args:
        folder: where to write.
        name: registered, with five classes.
        truth: (H, W) indices of the classes, `VOID` on ignored pixels; one per image.
    """
    vocabulary = Vocabulary.from_metadata(name)
    mapper = ZeroShotDatasetMapper(
        is_train=True,
        augmentations=[],
        image_format="RGB",
        source_vocabulary=vocabulary,
        target_vocabulary=vocabulary.with_seen([True] * CLASSES),
        novel_masks=False,
        max_pixels=0,
    )
    evaluator = ZeroShotSemSegEvaluator(
        name, vocabulary=vocabulary, distributed=False, output_dir=str(folder / name)
    )
    expected = np.zeros((CLASSES, CLASSES), int)
    for sample, label in zip(DatasetCatalog.get(name), truth, strict=True):
        assert (mapper(sample)["sem_seg"].numpy() == label).all()
        answer = np.arange(label.size).reshape(label.shape) % CLASSES
        evaluator.process([sample], [{"sem_seg_labels": torch.from_numpy(answer)}])
        np.add.at(expected, (label[label != VOID], answer[label != VOID]), 1)
    evaluator.evaluate()
    found = json.loads((folder / name / "metrics.json").read_text())["confusion"]
    assert found == expected.tolist() and expected.sum()


def clip_vectors(predictor: TagCLIPPredictor, names: list[str]) -> torch.Tensor:
    """(K, D) unit vectors of "a photo of a NAME", by open_clip itself."""
    source = predictor.model.text_bank.source
    config = {k: source.config[k] for k in ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")}
    clip = CLIP(**config).eval()
    clip.load_state_dict(source.state_dict(), strict=False)
    texts = ["a photo of a " + name for name in names]
    with torch.no_grad():
        return clip.encode_text(open_clip.tokenize(texts), normalize=True)


def assert_read_literally(bench: DataBench, names: list[str]) -> None:
    """Names stay as they are, and their vectors are those of open_clip."""
    predictor = bench.predictor()
    predictor.set_vocabulary(names)
    assert predictor(picture())["class_names"] == names
    found = predictor.model.text_bank(predictor.vocabulary)
    assert (found - clip_vectors(predictor, names)).abs().max() < 1e-5


class LargestTensor(TorchDispatchMode):
    """Records the most elements that a result of any operation has."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result
