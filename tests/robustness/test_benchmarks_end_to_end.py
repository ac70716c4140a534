"""Raw trees -> prepare -> validate -> train -> evaluate, with every shipped config.

Runs start in a folder of their own, so that OUTPUT_DIR and MODEL.WEIGHTS are those of the configs.
A step that is repeated changes nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from helpers.miniature_trees import (
    COCO_VALUES,
    SIZE,
    benchmarks_at,
    class_names,
    context_ids,
    make_ade150,
    make_ade_full,
    make_coco,
    make_context,
    make_voc,
    run_script,
    snapshot,
    voc_view,
    write_gray,
    write_jpg,
    write_palette,
)
from helpers.tiny_run import equal, load_tool, own_loggers, run_arguments
from PIL import Image
from scipy.io import savemat

from tagclip import load_config
from tagclip.evaluation.results import read_result_rows

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
LEAVES = sorted(p for p in CONFIGS.glob("*/*.yaml") if not p.name.startswith("Base-"))
ITERATIONS = 20
# The checkpoint in the middle.
HALF = f"model_{ITERATIONS // 2 - 1:07d}.pth"
ADE = ["ade20k150_train", "ade20k150_val", "ade20k847_val"]
LARGE = ("pascal_context459_val", "ade20k847_val")
# What the machine and the number of iterations force.
SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.CLIP.PRETRAINED": "",
    "MODEL.TAGCLIP.TEST.WINDOW": 64,
    "MODEL.TAGCLIP.TEST.STRIDE": 48,
    "INPUT.MIN_SIZE_TRAIN": [64],
    "INPUT.MIN_SIZE_TEST": 64,
    "INPUT.CROP.SIZE": [64, 64],
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": ITERATIONS,
    "SOLVER.WARMUP_ITERS": 2,
    "SOLVER.CHECKPOINT_PERIOD": ITERATIONS // 2,
}


def leaf_id(path: Path) -> str:
    """Folder and name, so that a failure names the config."""
    return f"{path.parent.name}/{path.stem}"


# Those for --eval-only name the final weights of another one.
EVALUATED = [p for p in LEAVES if load_config(p).MODEL.WEIGHTS.endswith("model_final.pth")]
TRAINED = [path for path in LEAVES if path not in EVALUATED]


def counts(labels: list[np.ndarray], classes: int) -> list[int]:
    """Pixels of each class; values that are no class do not count."""
    values = np.concatenate([label.ravel() for label in labels]).astype(int)
    return np.bincount(values[(values >= 0) & (values < classes)], minlength=classes).tolist()


def show_two_seen_classes(root: Path) -> None:
    """Relabel one training image of each benchmark: random labels have every unseen class.

    Without it nothing would be left to train on where no image may show an unseen class.
    """

    def halves(left: int, right: int) -> np.ndarray:
        label = np.full(SIZE, left, np.int32)
        label[:, SIZE[1] // 2 :] = right
        return label

    voc = root / "VOCdevkit"
    write_palette(voc / "VOC2012" / "SegmentationClass" / "2007_000032.png", halves(1, 15))
    write_gray(root / "coco" / "stuffthingmaps" / "train2017" / f"{9:012d}.png", halves(0, 1))
    numbers = [class_names("context459").index(name) + 1 for name in ("person", "sky")]
    label, stem = halves(*numbers), "2008_000002"
    write_palette(voc / "VOC2010" / "SegmentationClass" / f"{stem}.png", voc_view(label))
    tree = {"LabelMap": label.astype(np.uint16)}
    savemat(voc / "VOC2010" / "trainval" / f"{stem}.mat", tree, do_compression=True)


def make_trees(root: Path) -> dict[str, list[int]]:
    """All raw trees below one root; pixels of each class, by validation set.

    Not of ade20k847_val, whose labels are reduced in size: see test_prepare_ade20k.py.
    """
    voc, coco = make_voc(root), make_coco(root)
    context, ade = make_context(root), make_ade150(root)
    map_json = CONFIGS.parent / "tagclip" / "data" / "datasets" / "label_maps" / "ade847.json"
    make_ade_full(root, [int(number) for number in json.loads(map_json.read_text())["classes"]])
    show_two_seen_classes(root)
    # The helpers draw some images twice; validation calls that a problem.
    for seed, path in enumerate(sorted(root.rglob("*.jpg"))):
        with Image.open(path) as image:
            size = image.size[::-1]
        write_jpg(path, seed, size)
    coco_val = [coco[f"{number:012d}"] for number in (139, 285)]
    ranks = [np.where(c == 255, -1, np.searchsorted(COCO_VALUES, c)) for c in coco_val]
    context_val = [context[stem] for stem in ("2008_000009", "2010_006021")]
    names = class_names("context59")
    return {
        "voc2012_val": counts([label - 1 for label in voc["val"].values()], 20),
        "coco_stuff_val": counts(ranks, 171),
        "pascal_context59_val": counts([context_ids(c, names, 0) for c in context_val], 59),
        "pascal_context60_val": counts([context_ids(c, names, 1) for c in context_val], 60),
        "pascal_context459_val": counts([label - 1 for label in context_val], 459),
        "ade20k150_val": counts([ade[stem] - 1 for stem in ade if "val" in stem], 150),
    }


def prepare_all(root: Path) -> None:
    for name in ("prepare_voc", "prepare_coco_stuff", "prepare_pascal_context"):
        run_script(name, root)
    run_script("prepare_ade20k", root, "--only", *ADE)


class Runs:
    """Runs of tools/train_net.py; those that a run starts from are trained before it."""

    def __init__(self, tool: ModuleType, clip: str, pixels: Mapping[str, list[int]]) -> None:
        self._tool, self._clip, self.pixels = tool, clip, pixels
        self._results: dict[Path, dict[str, Any]] = {}
        self._of_output = {load_config(path).OUTPUT_DIR: path for path in TRAINED}

    def run(self, path: Path, *opts: Any, **options: Any) -> dict[str, Any]:
        """Run with a config; opts are keys and values on top of it."""
        cfg = load_config(path)
        weights = Path(cfg.MODEL.WEIGHTS)
        given = {**SMALL, "MODEL.CLIP.NAME": self._clip}
        if cfg.MODEL.WEIGHTS:
            self.train(self._of_output[str(weights.parent)])
            if weights.name != "model_final.pth":
                given["MODEL.WEIGHTS"] = weights.with_name(HALF)
        words = [word for pair in given.items() for word in pair]
        with own_loggers():
            return self._tool.main(run_arguments(path, *words, *opts, **options))

    def train(self, path: Path) -> dict[str, Any]:
        """Results of training with a config, which is done once."""
        if path not in self._results:
            self._results[path] = self.run(path)
        return self._results[path]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict]]:
    """Root of the prepared benchmarks, which are registered there; pixels of each class."""
    folder = tmp_path_factory.mktemp("benchmarks")
    (folder / "work").mkdir()
    pixels = make_trees(folder / "data")
    prepare_all(folder / "data")
    with benchmarks_at(folder / "data"), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder / "work")
        yield folder / "data", pixels


@pytest.fixture(scope="module")
def runs(prepared: tuple[Path, dict], tiny_clip_json: str, repository: Path) -> Runs:
    return Runs(load_tool(repository / "tools" / "train_net.py"), tiny_clip_json, prepared[1])


def read_results(
    output: Path, datasets: tuple[str, ...], pixels: Mapping[str, list[int]]
) -> dict[str, dict[str, Any]]:
    """metrics.json of each dataset: every label of the raw tree was counted, as its class."""
    found = {path.parent.name: path for path in output.glob("inference/*/metrics.json")}
    assert sorted(found) == sorted(datasets)
    results = {name: json.loads(path.read_text()) for name, path in found.items()}
    for name, result in results.items():
        assert result["images"] == 2 and math.isfinite(result["metrics"]["mIoU"])
        counted = [entry["pixels"] for entry in result["classes"]]
        assert counted == pixels.get(name, counted)
    return results


def inference(output: Path) -> Mapping[str, bytes | str]:
    return snapshot(output / "inference")


def test_every_config_is_run_here() -> None:
    # By dataset: with the token or supervised, with a convolutional head, with the relative map.
    recommended = 3 * 3 + 3 * 2 + 3
    assert (len(TRAINED), len(EVALUATED)) == (recommended + 2 * 3 + 2 * 10, 3 + 4 + 2)


def test_preparing_again_changes_nothing(prepared: tuple[Path, dict]) -> None:
    root, _ = prepared

    def times() -> dict[Path, int]:
        return {path: path.lstat().st_mtime_ns for path in root.rglob("*")}

    before = snapshot(root), times()
    prepare_all(root)
    assert (snapshot(root), times()) == before


@pytest.fixture(scope="module")
def validate(prepared: tuple[Path, dict], repository: Path) -> Callable[..., None]:
    """Run tools/validate_dataset.py, which finds nothing wrong, with an output folder."""
    tool = load_tool(repository / "tools" / "validate_dataset.py")

    def run(output: Path, *words: str) -> None:
        assert tool.main(tool.parse_args([*words, "--output", str(output), "--workers", "0"])) == 0
        reports = [json.loads(path.read_text()) for path in output.glob("*/report.json")]
        # So few images have not every class; nothing else is worth a note.
        kinds = {problem["kind"] for report in reports for problem in report["problems"]}
        assert reports and kinds <= {"absent"}

    return run


@pytest.mark.parametrize(
    "words",
    [
        *(("--config-file", str(path)) for path in sorted(CONFIGS.glob("[cv]o*/*_inductive.yaml"))),
        ("pascal_context60_train", "pascal_context60_val"),
        ("pascal_context459_val",),
        ("ade20k150_train", "ade20k150_val"),
        ("ade20k847_val",),
    ],
    ids=lambda words: Path(words[-1]).stem,
)
def test_prepared_data_are_valid(
    words: tuple[str, ...], validate: Callable[..., None], tmp_path: Path
) -> None:
    validate(tmp_path, *words)


def test_validating_again_changes_nothing(validate: Callable[..., None], tmp_path: Path) -> None:
    validate(tmp_path, "voc2012_val")
    before = snapshot(tmp_path)
    validate(tmp_path, "voc2012_val")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("path", TRAINED, ids=leaf_id)
def test_training_and_evaluation(path: Path, runs: Runs, tmp_path: Path) -> None:
    trained, cfg = runs.train(path), load_config(path)
    output = Path(cfg.OUTPUT_DIR)
    check_training(output, cfg)
    results = read_results(output, cfg.DATASETS.TEST, runs.pixels)
    # Evaluation has the training run's results; a second one in the same folder the same files.
    before = None
    options = ("OUTPUT_DIR", tmp_path, "MODEL.WEIGHTS", output / "model_final.pth")
    for _ in range(2):
        np.testing.assert_equal(runs.run(path, *options, eval_only=True), trained)
        again = read_results(tmp_path, cfg.DATASETS.TEST, runs.pixels)
        for name, result in results.items():
            for key in ("metrics", "classes", "confusion", "vocabulary_fingerprint"):
                assert again[name][key] == result[key]
        assert before in (None, inference(tmp_path))
        before = inference(tmp_path)


def check_training(output: Path, cfg: CfgNode) -> None:
    """Losses are finite, weights change, the second stage is monitored."""
    curve = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    losses = [entry["total_loss"] for entry in curve if "total_loss" in entry]
    assert losses and all(math.isfinite(loss) for loss in losses)
    half, final = (torch.load(output / n, weights_only=True) for n in (HALF, "model_final.pth"))
    assert (half["iteration"], final["iteration"]) == (ITERATIONS // 2 - 1, ITERATIONS - 1)
    moved = [k for k, value in half["model"].items() if not torch.equal(value, final["model"][k])]
    assert len(moved) > len(half["model"]) // 2
    (row,) = read_result_rows(output / "results.csv")[1]
    transductive = cfg.DATASETS.ZERO_SHOT.SETTING == "transductive"
    assert row["setting"] == cfg.DATASETS.ZERO_SHOT.SETTING
    assert row["weights"] == (HALF if transductive else "")
    assert any("pseudo_labels" in entry for entry in curve) == transductive
    if transductive and cfg.MODEL.TAGCLIP.SELF_TRAINING.REGION == "novel":
        assert any(entry.get("pseudo_labels", 0) > 0 for entry in curve)


@pytest.mark.parametrize("path", sorted((CONFIGS / "voc").glob("tagclip_*")), ids=leaf_id)
def test_training_again_gives_the_same_model(path: Path, runs: Runs, tmp_path: Path) -> None:
    first = runs.train(path)
    np.testing.assert_equal(runs.run(path, "OUTPUT_DIR", tmp_path), first)
    folders = Path(load_config(path).OUTPUT_DIR), tmp_path
    files = [torch.load(folder / "model_final.pth", weights_only=True) for folder in folders]
    assert equal(files[0]["model"], files[1]["model"])


@pytest.mark.parametrize("path", EVALUATED, ids=leaf_id)
def test_evaluation_of_another_configs_model(path: Path, runs: Runs) -> None:
    cfg = load_config(path)
    output = Path(cfg.OUTPUT_DIR)
    runs.run(path, eval_only=True)
    read_results(output, cfg.DATASETS.TEST, runs.pixels)
    before = inference(output)
    runs.run(path, eval_only=True)
    assert inference(output) == before
    rows = read_result_rows(output / "results.csv")[1]
    assert [row["dataset"] for row in rows] == 2 * list(cfg.DATASETS.TEST)
    assert {row["weights"] for row in rows} == {"model_final.pth"}
    timeless = [{**row, "time": ""} for row in rows]
    assert timeless[: len(rows) // 2] == timeless[len(rows) // 2 :]


def test_evaluation_with_hundreds_of_classes(runs: Runs) -> None:
    path = CONFIGS / "cross_dataset" / "tagclip_vitb16_cross_dataset_inductive.yaml"
    runs.run(path, "DATASETS.TEST", LARGE, "OUTPUT_DIR", "output/large", eval_only=True)
    results = read_results(Path("output/large"), LARGE, runs.pixels)
    assert [len(results[name]["classes"]) for name in LARGE] == [459, 847]
