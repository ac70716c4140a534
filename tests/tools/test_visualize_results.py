"""Worst and best images and confusions of an evaluation, against counts pixel by pixel."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from helpers.tiny_run import VOID, changed, load_tool, write_tiny_dataset
from PIL import Image

from tagclip import ZeroShotTrainer, load_config
from tagclip.data import Protocol
from tagclip.errors import ConfigError

NAMES, UNSEEN = ["cat", "dog", "grass", "sky", "sofa"], {1, 3}
COUNT = 5


@pytest.fixture
def tool(repository: Path) -> ModuleType:
    return load_tool(repository / "tools" / "visualize_results.py")


class Run:
    """An evaluated run: five images, of which the i-th has wrong pixels in i of its 8 stripes."""

    def __init__(self, cfg: CfgNode, root: Path) -> None:
        write_tiny_dataset(root, val=COUNT)
        self.cfg, self.folder = cfg, Path(cfg.OUTPUT_DIR)
        self.dataset = cfg.DATASETS.TEST[0]
        self.pairs: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        rng = np.random.default_rng(0)
        for index, sample in enumerate(DatasetCatalog.get(self.dataset)):
            truth = np.array(Image.open(sample["sem_seg_file_name"])).astype(int)
            wrong = rng.integers(-1, 5, truth.shape)
            stripes = np.indices(truth.shape)[0] % 8 < index
            labels = np.where(stripes | (truth == VOID), wrong, truth)
            self.pairs[sample["file_name"]] = truth, labels

    def evaluate(self, kind: str, trained: str | None = None) -> None:
        cfg = changed(self.cfg, "TEST.SAVE_PREDICTIONS", kind)
        self.folder.mkdir(exist_ok=True)
        (self.folder / "config.yaml").write_text(cfg.dump())
        evaluator = ZeroShotTrainer.build_evaluator(cfg, self.dataset)
        evaluator.trained_sha256 = trained
        for file, (_, labels) in self.pairs.items():
            output = {
                "sem_seg_labels": torch.from_numpy(labels).short(),
                "trusty": torch.full(labels.shape, 0.5),
            }
            evaluator.process([{"file_name": file}], [output])
        evaluator.evaluate()

    def counts(self) -> Counter[tuple[int, int]]:
        """(true, predicted) -> labelled pixels, one pixel after the other."""
        return Counter(
            pair
            for truth, labels in self.pairs.values()
            for pair in zip(truth.ravel().tolist(), labels.ravel().tolist(), strict=True)
            if pair[0] != VOID
        )

    def ranking(self) -> list[tuple[float, str]]:
        """(mIoU over the classes on it, name) of every image, best first."""
        found = []
        for file, (truth, labels) in self.pairs.items():
            ious = []
            for k in set(truth.ravel().tolist()) - {VOID}:
                either = ((truth == k) | (labels == k)) & (truth != VOID)
                ious.append(100 * ((truth == k) & (labels == k)).sum() / either.sum())
            found.append((float(np.mean(ious)), Path(file).name))
        return sorted(found, reverse=True)


@pytest.fixture
def run(tiny_cfg: CfgNode, tmp_path: Path) -> Run:
    return Run(tiny_cfg, tmp_path)


@pytest.fixture
def galleries(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The images of each page that is drawn."""
    import tagclip.analysis.result_images as module

    drawn, draw = [], module.draw_gallery
    monkeypatch.setattr(
        module, "draw_gallery", lambda images, *more: drawn.append(images) or draw(images, *more)
    )
    return drawn


def show(tool: ModuleType, run: Run, *options: str) -> None:
    tool.main(tool.parse_args([str(run.folder), *options]))


@pytest.mark.parametrize("kind", ["png", "json"])
def test_the_worst_and_the_best_are_drawn(
    tool: ModuleType, run: Run, galleries: list[Any], kind: str
) -> None:
    run.evaluate(kind)
    show(tool, run, "--num", "2")
    worst, best = galleries
    ranking = run.ranking()
    for rank, image in zip((5, 4, 1, 2), (*worst, *best), strict=True):
        score, name = ranking[rank - 1]
        assert image.title.startswith(f"rank {rank} of {COUNT}: {name}, mIoU {score:.1f}")
        file = next(file for file in run.pairs if Path(file).name == name)
        truth, labels = run.pairs[file]
        assert (image.truth == truth).all() and (image.labels == labels).all()
        assert (image.image == np.array(Image.open(file))).all()
        assert (image.trusty is None) == (kind == "json")
    # The first image has no wrong pixel.
    assert best[0].title.endswith("mIoU 100.0")
    (true, predicted), pixels = max(
        ((pair, n) for pair, n in pixel_pairs(worst[0]).items() if pair[0] != pair[1]),
        key=lambda item: item[1],
    )
    names = [f"★ {name}" if k in UNSEEN else name for k, name in enumerate(NAMES)] + ["no class"]
    share = 100 * pixels / sum(pixel_pairs(worst[0]).values())
    text = f"{share:.0f} % of its pixels are {names[true]} taken for {names[predicted]}"
    assert worst[0].title.endswith(text)
    folder = run.folder / "visualize_results" / run.dataset
    assert {file.name for file in folder.iterdir()} == {
        "worst.png", "best.png", "confusions.md", "confusions.png", "confusion_map.png"
    }  # fmt: skip


def pixel_pairs(image: Any) -> Counter[tuple[int, int]]:
    labelled = image.truth != VOID
    pairs = zip(image.truth[labelled].tolist(), image.labels[labelled].tolist(), strict=True)
    return Counter(pairs)


def test_the_table_lists_every_confusion_with_its_share(
    tool: ModuleType, run: Run, capsys: pytest.CaptureFixture
) -> None:
    run.evaluate("png")
    show(tool, run, "--output", str(run.folder / "out"))
    counts, totals = run.counts(), Counter()
    for (true, _), pixels in run.counts().items():
        totals[true] += pixels
    text = (run.folder / "out" / run.dataset / "confusions.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    found = {(a, b): (share, pixels) for a, b, share, pixels in (r for r in rows if len(r) == 4)}
    for (true, predicted), pixels in counts.items():
        if true != predicted and predicted >= 0:
            share = f"{100 * pixels / totals[true]:.2f}"
            assert found[NAMES[true], NAMES[predicted]] == (share, str(pixels))
    crossing = [p for p in counts if p[1] >= 0 and p[0] in UNSEEN and p[1] not in UNSEEN]
    first = max(crossing, key=lambda pair: counts[pair] / totals[pair[0]])
    share = 100 * counts[first] / totals[first[0]]
    lines = capsys.readouterr().out.splitlines()
    sentence = f"{NAMES[first[0]]} taken for {NAMES[first[1]]}: {share:.1f} % of its pixels"
    assert lines[1].strip() == sentence
    unseen = sum(pixels for pair, pixels in counts.items() if pair[0] in UNSEEN)
    taken = sum(counts[pair] for pair in crossing)
    expected = f"unseen taken for seen: {100 * taken / unseen:.1f} % of all unseen pixels"
    assert lines[0].endswith(expected)


def message(function: Callable[[], Any]) -> str:
    with pytest.raises(ConfigError) as error:
        function()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_without_predictions_a_command_is_named(tool: ModuleType, run: Run) -> None:
    run.evaluate("")
    text = message(lambda: show(tool, run))
    result = run.folder / "inference" / run.dataset
    command = (
        f"tagclip evaluate --config-file {result}/config.yaml "
        f"--weights CHECKPOINT OUTPUT_DIR {run.folder} TEST.SAVE_PREDICTIONS png"
    )
    assert text.endswith(f"found no predictions; save them with: {command}")
    # Of weights that were named, not of the last of the training in the folder.
    (run.folder / "last_checkpoint").write_text("model.pth")
    assert message(lambda: show(tool, run)) == text
    content = json.loads((result / "metrics.json").read_text())
    content["run"]["iterations"] = 4
    (result / "metrics.json").write_text(json.dumps(content))
    assert "config.yaml --resume OUTPUT_DIR" in message(lambda: show(tool, run))
    # What needs no predictions has been drawn.
    assert (run.folder / "visualize_results" / run.dataset / "confusions.png").is_file()


def test_predictions_of_other_weights_are_refused(tool: ModuleType, run: Run) -> None:
    """Although they add up: a later evaluation saved none."""
    run.evaluate("png", trained="a" * 64)
    show(tool, run)
    run.evaluate("", trained="b" * 64)
    folder = run.folder / "inference" / run.dataset / "predictions"
    found, expected = (f"trained_sha256 {letter * 12}" for letter in "ab")
    text = message(lambda: show(tool, run))
    assert text.startswith(
        f"{folder}: found predictions of {found}, expected those of the metrics.json beside them, "
        f"{expected}; save them again with: tagclip evaluate --config-file "
    )
    run.evaluate("png", trained="b" * 64)
    show(tool, run)
    # One of nothing that was trained has another of both.
    run.evaluate("")
    assert "expected those of the metrics.json beside them, trained_sha256 none; save them" in (
        message(lambda: show(tool, run))
    )


def test_a_split_that_has_changed_since_the_evaluation_changes_nothing(
    tool: ModuleType, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run.evaluate("png")
    show(tool, run)
    before = capsys.readouterr().out
    asked = Protocol.asked
    other = lambda *args: asked(*args).with_seen(["cat", "dog", "grass"])  # noqa: E731
    monkeypatch.setattr(Protocol, "asked", other)
    show(tool, run)
    assert capsys.readouterr().out == before


def test_each_result_is_read_with_the_config_of_its_evaluation(
    tool: ModuleType, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A later one, on another dataset, has replaced that of the folder."""
    run.evaluate("png")
    show(tool, run)
    before = capsys.readouterr().out
    other = load_config("", ["OUTPUT_DIR", str(run.folder), "DATASETS.TEST", "('gone',)"])
    (run.folder / "config.yaml").write_text(other.dump())
    show(tool, run)
    assert capsys.readouterr().out == before


def test_an_image_that_is_no_longer_listed_is_missed(tool: ModuleType, run: Run) -> None:
    run.evaluate("png")
    for sample in DatasetCatalog.get(run.dataset)[1:3]:
        Path(sample["sem_seg_file_name"]).unlink()
        Path(sample["file_name"]).unlink()
    text = message(lambda: show(tool, run))
    path = run.folder / "inference" / run.dataset / "predictions" / "index.json"
    assert text == (
        f"{path}: found predictions of 5 images, of which the dataset lists 3 now, expected all; "
        "put its list of images back, or evaluate again with TEST.SAVE_PREDICTIONS png"
    )


def test_parts_of_different_evaluations_are_refused(tool: ModuleType, run: Run) -> None:
    run.evaluate("png")
    path = run.folder / "inference" / run.dataset / "metrics.json"
    content = json.loads(path.read_text())
    content["confusion"][0][1] += 1
    path.write_text(json.dumps(content))
    assert "do not add up to the metrics.json" in message(lambda: show(tool, run))
    path.write_text(json.dumps(content | {"confusion": [[1]]}))
    assert "expected 5 x 5; evaluate the run again" in message(lambda: show(tool, run))
    path.write_text(json.dumps(content | {"vocabulary_fingerprint": "0" * 64}))
    assert "which has changed; evaluate the run again" in message(lambda: show(tool, run))
    assert "found no result on 'other'" in message(lambda: show(tool, run, "--dataset", "other"))
    # An earlier version kept none beside the result.
    for folder in (path.parent, run.folder):
        (folder / "config.yaml").unlink()
    assert "found no config.yaml" in message(lambda: show(tool, run))
