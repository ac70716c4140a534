"""Saved logits and their analysis, from the evaluation of tiny models to the pages."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from helpers.html import Page
from helpers.tiny_run import (
    NAMES,
    UNSEEN,
    VOID,
    changed,
    load_tool,
    own_loggers,
    write_tiny_dataset,
)
from helpers.toy_dataset import forget
from PIL import Image

from tagclip import ZeroShotTrainer
from tagclip.analysis.figure_tables import comparison_rows
from tagclip.analysis.gate_analysis import DETECTOR_SECTIONS
from tagclip.analysis.run_analysis import AnalyzedRun
from tagclip.data import Protocol
from tagclip.errors import ConfigError
from tagclip.evaluation.saved_logits import SavedLogits

PICTURES = ("seen_unseen_curves", "reliability", "histograms", "confusions", "images")
TABLES = ("figures.csv", "curves.csv", "reliability.csv", "confusions.csv", "analysis.json")


@pytest.fixture
def tool(repository: Path) -> ModuleType:
    return load_tool(repository / "tools" / "analyze_predictions.py")


@pytest.fixture
def evaluate(tiny_cfg: CfgNode, tmp_path: Path) -> Callable[..., Path]:
    """Evaluates a random model into a folder; the same folder name gives the same model."""
    write_tiny_dataset(tmp_path, val=5)

    def run(name: str, *opts: Any) -> Path:
        folder = tmp_path / "runs" / name
        cfg = changed(tiny_cfg, "OUTPUT_DIR", str(folder), "TEST.SAVE_LOGITS", True, *opts)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(cfg.dump())
        torch.manual_seed(0)
        model = ZeroShotTrainer.build_model(cfg).eval()
        with torch.no_grad():
            # Spreads the scores of a random model.
            for parameter in model.sem_seg_head.parameters():
                parameter.mul_(3)
        with own_loggers():
            ZeroShotTrainer.test(cfg, model)
        run.model, run.cfg = model, cfg
        return folder

    return run


def logits_of(folder: Path) -> Path:
    (found,) = folder.glob("inference/*/logits")
    return found


def analyze(tool: ModuleType, output: Path, *runs: Path, **options: Any) -> Path:
    more = [str(word) for pair in options.items() for word in (f"--{pair[0]}", pair[1])]
    tool.main(tool.parse_args(["--runs", *map(str, runs), "--output", str(output), *more]))
    (found,) = output.iterdir()
    return found


def test_saved_logits_are_those_of_the_evaluation(evaluate: Callable[..., Path]) -> None:
    run = evaluate("a", "TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", [64, 96])
    cfg = evaluate.cfg
    dataset = cfg.DATASETS.TEST[0]
    samples = DatasetCatalog.get(dataset)
    vocabulary = Protocol(cfg).asked(dataset)
    saved = SavedLogits.open(logits_of(run), vocabulary, [s["file_name"] for s in samples])
    assert saved.index["images"] == 5 and saved.index["dataset"] == dataset
    assert saved.index["classes"] == list(vocabulary.names)
    assert saved.index["seen"] == vocabulary.seen_mask.tolist()
    assert saved.index["trusty_target"] == "seen" and saved.index["gate"]["bias"] == 0.1
    assert saved.index["run"]["seed"] == 0
    for (item,) in ZeroShotTrainer.build_test_loader(cfg, dataset):
        (expected,) = evaluate.model([item])
        views, size = saved.read(item["file_name"])
        assert len(views.views) == len(item["views"]) > 1
        for found, own in zip(views.views, expected["logits"].views, strict=True):
            torch.testing.assert_close(found.class_logits, own.class_logits.half().float())
            torch.testing.assert_close(found.trusty_logits, own.trusty_logits.half().float())
            assert (found.grid, found.padded_size, found.mirrored) == (
                own.grid, own.padded_size, own.mirrored
            )  # fmt: skip
        labels = views.labels(size)
        same = labels["sem_seg_labels"] == expected["sem_seg_labels"]
        assert same.float().mean() > 0.99
        torch.testing.assert_close(labels["trusty"], expected["trusty"], atol=2e-3, rtol=0)


def test_nothing_is_saved_unasked(evaluate: Callable[..., Path]) -> None:
    run = evaluate("a", "TEST.SAVE_LOGITS", False)
    assert not list(run.glob("inference/*/logits"))
    (item, *_) = next(
        iter(ZeroShotTrainer.build_test_loader(evaluate.cfg, evaluate.cfg.DATASETS.TEST[0]))
    )
    assert "logits" not in evaluate.model([item])[0]


def test_a_run_without_unseen_classes_is_named_before_its_logits(
    tool: ModuleType, evaluate: Callable[..., Path], tmp_path: Path
) -> None:
    good = evaluate("a")
    run = evaluate("b", "TEST.SAVE_LOGITS", False, "DATASETS.ZERO_SHOT.SETTING", "supervised")
    with pytest.raises(ConfigError, match=f"^{run}: found 5 seen of 5 classes on .*whose split ha"):
        analyze(tool, tmp_path / "out", good, run)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("which", ["train", "val"])
def test_only_the_analyzed_dataset_has_to_be_the_same(
    tool: ModuleType,
    evaluate: Callable[..., Path],
    tmp_path: Path,
    tiny_vocabulary_json: str,
    which: str,
) -> None:
    """Seeds that were trained on other images of one name; their names mean more than one list."""
    lists = {}
    for count in (3, 4):
        lists[count] = tmp_path / f"{which}_{count}.txt"
        lists[count].write_text("".join(f"{index}\n" for index in range(count)))
    runs = []
    for count, path in lists.items():
        entries = [
            {
                "name": f"mine_{subset}",
                "images": str(tmp_path / "images" / subset),
                "labels": str(tmp_path / "labels" / subset),
                "vocabulary": tiny_vocabulary_json,
            }
            | ({"image_list": str(path)} if subset == which else {})
            for subset in ("train", "val")
        ]
        sets = ("DATASETS.TRAIN", ("mine_train",), "DATASETS.TEST", ("mine_val",))
        runs.append(evaluate(f"of_{count}", "DATASETS.FOLDER_DATASETS", entries, *sets))
        forget("mine_train", "mine_val")
    if which == "train":
        folder = analyze(tool, tmp_path / "out", *runs)
        assert (folder / "comparison.html").is_file()
        assert not {"mine_train", "mine_val"} & set(DatasetCatalog.list())
        return
    with pytest.raises(ConfigError) as caught:
        analyze(tool, tmp_path / "out", *runs)
    assert str(caught.value) == (
        f"{runs[1]}: found dataset mine_val with image_list {lists[4]}, expected {lists[3]} as in "
        f"{runs[0]}; analyze each of the two by itself, or evaluate one with the dataset of the "
        "other"
    )
    assert not (tmp_path / "out").exists()
    for number, run in enumerate(runs):
        analyze(tool, tmp_path / f"out_{number}", run)


def test_a_run_gets_a_page_with_the_figures_of_its_evaluation(
    tool: ModuleType, evaluate: Callable[..., Path], tmp_path: Path
) -> None:
    run = evaluate("a")
    folder = analyze(tool, tmp_path / "out", run, num=1) / "a"
    assert {file.name for file in folder.iterdir()} == {
        "report.html", *TABLES, *(f"{name}.png" for name in PICTURES)
    }  # fmt: skip
    found = json.loads((folder / "analysis.json").read_text())
    metrics = json.loads(next(run.glob("inference/*/metrics.json")).read_text())
    own = found["figures"]["own"]
    for key in ("hIoU", "mIoU-seen", "mIoU-unseen"):
        assert own[key] == pytest.approx(metrics["metrics"][key], abs=0.2)
        assert found["figures"]["oracle"][key] >= own[key] - 1e-9
    for name, section in DETECTOR_SECTIONS.items():
        detector = found["figures"][section]
        evaluated = metrics["metrics"][f"trusty-{name}"]
        assert detector["trusty map"] == pytest.approx(evaluated, abs=0.2)
    assert own["best hIoU"] >= own["hIoU"] and own["bias"] == 0.1
    # The pairs are those of the stored confusion matrix.
    assert all(found["confusions"].values()) and own["mIoU-unseen"] > 0
    confusion = np.array(metrics["confusion"])
    names = [entry["name"] for entry in metrics["classes"]]
    for kind, true_seen in (("unseen taken for seen", False), ("seen taken for unseen", True)):
        for name, taken, share, pixels in found["confusions"][kind]:
            i, j = names.index(name), names.index(taken)
            assert (i not in UNSEEN) is true_seen is not (j not in UNSEEN)
            assert pixels == pytest.approx(confusion[i, j], abs=20)
            assert share == pytest.approx(100 * pixels / confusion[i].sum(), abs=0.01)
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert page.pictures == [(folder / f"{name}.png").read_bytes() for name in PICTURES]
    assert f"{own['hIoU']:.2f}" in page.words
    assert "classes are here those of the gate" in " ".join(page.words)
    for measure in ("AUROC", "AUPR", "FPR at 95 % TPR"):
        assert f"detection of unseen pixels: {measure} of" in page.words
        assert f"{measure} is the " in " ".join(page.words)
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert html.index(verdict_of(found["figures"])) < html.index("<img ") < html.index("<table")
    rows = list(csv.reader((folder / "figures.csv").open()))
    assert ["own", "hIoU", f"{round(own['hIoU'], 4)}"] in rows
    assert {row[0] for row in csv.reader((folder / "curves.csv").open())} == {"gate", "own", "none"}
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    analyze(tool, tmp_path / "out", run, num=1)
    assert before == {file.name: file.read_bytes() for file in folder.iterdir()}


def verdict_of(figures: dict[str, dict[str, float]]) -> str:
    """The sentence, written anew from the figures of analysis.json."""
    with_it, without = (round(figures[name]["best hIoU"], 2) for name in ("own", "none"))
    change = with_it - without
    assert abs(change) > 0.01
    return (
        f"The gate {'helps' if change > 0 else 'hurts'} here: with the best bias of each, hIoU is "
        f"{with_it:.2f} with the gate and {without:.2f} without ({change:+.2f}); with the "
        f"configured bias 0.1, {figures['own']['hIoU']:.2f} and {figures['none']['hIoU']:.2f}."
    )


@pytest.mark.parametrize(
    ("own", "none", "has_gate", "text"),
    [
        (50.0, 40.0, True, "The gate helps here: .* 50.00 with the gate and 40.00 without .+10.00"),
        (40.0, 50.004, True, "The gate hurts here: .* 40.00 .* 50.00 without .-10.00.; .* 0.1, 9"),
        (40.001, 40.004, True, "The gate makes no difference here: "),
        (40.0, 40.0, False, "No gate: this run makes no use of a trusty map"),
    ],
)
def test_one_sentence_says_whether_the_gate_helps(
    own: float, none: float, has_gate: bool, text: str
) -> None:
    figures = {
        name: {"best hIoU": value, "bias": 0.1, "hIoU": 9.0}
        for name, value in (("own", own), ("none", none))
    }
    analysis = SimpleNamespace(has_gate=has_gate, figures=lambda: figures)
    assert re.match(text, AnalyzedRun("a", {}, None, None, analysis, []).verdict)


def test_runs_stand_side_by_side(
    tool: ModuleType, evaluate: Callable[..., Path], tmp_path: Path, capsys: Any
) -> None:
    first = evaluate("plain", "MODEL.TAGCLIP.TRUSTY.ENABLED", False)
    second = evaluate("gated")
    capsys.readouterr()
    folder = analyze(tool, tmp_path / "out", first, second, num=1)
    content = json.loads((folder / "comparison.json").read_text())
    assert content["runs"] == ["plain", "gated"]
    one, two = content["figures"]
    assert one["own"] == one["none"] and one["detector AUPR"]["trusty map"] is None
    for label, figures in (("plain", one), ("gated", two)):
        assert json.loads((folder / label / "analysis.json").read_text())["figures"] == figures
    assert not (folder / "plain" / "reliability.png").exists()
    change = two["own"]["hIoU"] - one["own"]["hIoU"]
    cell = f"{two['own']['hIoU']:.2f} ({change:+.2f})"
    page = Page((folder / "comparison.html").read_text(encoding="utf-8"))
    assert cell in page.words and cell in capsys.readouterr().out
    assert len(page.pictures) == 2
    assert "classes are here those of the gate" in " ".join(page.words)
    html = (folder / "comparison.html").read_text(encoding="utf-8")
    assert html.index("plain: No gate") < html.index(f"gated: {verdict_of(two)}")
    assert html.index(f"gated: {verdict_of(two)}") < html.index("<img ") < html.index("<table")
    rows = list(csv.reader((folder / "comparison.csv").open()))
    assert rows[0] == ["section", "figure", "plain", "gated"]
    assert len(rows) == 1 + sum(map(len, one.values()))


def test_differences_are_to_the_first_run() -> None:
    nan = float("nan")
    runs = [
        {"own": {"hIoU": a, "best bias": b}} for a, b in ((50, 0.1), (52.5, nan), (50 - 1e-9, 0))
    ]
    hiou, bias = comparison_rows(runs)
    assert hiou == ("model's gate", "hIoU", "50.00", "52.50 (+2.50)", "50.00 (+0.00)")
    assert bias == ("model's gate", "best bias", "0.100", "n/a", "0.000 (-0.100)")


def message(function: Callable[[], Any]) -> str:
    with pytest.raises(ConfigError) as error:
        function()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("device", "gpus", "found"),
    [
        ("cuda", 0, "on a machine without GPU, expected cpu"),
        ("cuda:3", 0, "on a machine without GPU, expected cpu"),
        ("cuda:3", 2, "on a machine with 2 GPUs, expected cuda, cpu, or cuda:N with an N below 2"),
        ("foo", 0, "expected cuda or cpu"),
        ("meta", 2, "expected cuda or cpu"),
    ],
)
def test_a_device_that_is_not_there_is_said_before_anything_is_read(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, gpus: int,
    found: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    text = message(lambda: analyze(tool, tmp_path / "out", tmp_path / "none", device=device))
    assert text.startswith(f"--device: found {device!r}") and text.endswith(found)


def test_labels_that_have_changed_since_are_refused(
    tool: ModuleType, evaluate: Callable[..., Path], tmp_path: Path
) -> None:
    """Of a few pixels: mIoU is near."""
    run = evaluate("a")
    path = Path(DatasetCatalog.get(evaluate.cfg.DATASETS.TEST[0])[0]["sem_seg_file_name"])
    labels = np.array(Image.open(path))
    row, column = np.argwhere(labels != VOID)[0]
    first = min(labels[row, column], (labels[row, column] + 1) % 5)
    labels[row, column] = (labels[row, column] + 1) % 5
    Image.fromarray(labels).save(path)
    with pytest.raises(ConfigError) as error:
        analyze(tool, tmp_path / "out", run)
    assert str(error.value) == (
        f"{logits_of(run)}: found logits whose images have other labels now than in the "
        f"metrics.json beside them, of {NAMES[first]} for one, expected the same; evaluate again "
        "with TEST.SAVE_LOGITS True"
    )


def test_logits_of_an_earlier_model_are_not_those_of_the_new_one(
    tool: ModuleType, evaluate: Callable[..., Path], tmp_path: Path
) -> None:
    """Whose mIoU may be near: a second evaluation into the folder saves none."""
    run = evaluate("a")
    logits = logits_of(run)
    metrics = logits.parent / "metrics.json"
    index = json.loads((logits / "index.json").read_text())
    content = json.loads(metrics.read_text())
    ours = content["run"]["trained_sha256"]
    assert index["trained_sha256"] == ours
    content["run"]["trained_sha256"] = other = "0" * 64
    metrics.write_text(json.dumps(content))
    assert message(lambda: analyze(tool, tmp_path / "out", run)) == (
        f"{logits}: found logits of trained_sha256 {ours[:12]}, expected those of the metrics.json "
        f"beside them, trained_sha256 {other[:12]}; save them again with: tagclip evaluate "
        f"--config-file {logits.parent}/config.yaml --weights CHECKPOINT OUTPUT_DIR {run} "
        "TEST.SAVE_LOGITS True"
    )
    # Earlier versions wrote no checksum into the index: mIoU is all that is compared.
    del index["trained_sha256"]
    (logits / "index.json").write_text(json.dumps(index))
    analyze(tool, tmp_path / "out", run, num=1)


def test_weights_that_train_nothing_are_told_by_their_file(
    tool: ModuleType, evaluate: Callable[..., Path], tmp_path: Path
) -> None:
    run = evaluate("a")
    logits = logits_of(run)
    for path, value in ((logits / "index.json", "1"), (logits.parent / "metrics.json", "2")):
        content = json.loads(path.read_text())
        weights = content["run"] if path.stem == "metrics" else content
        weights.pop("trained_sha256")
        weights["weights_sha256"] = value * 64
        path.write_text(json.dumps(content))
    text = message(lambda: analyze(tool, tmp_path / "out", run))
    assert f"found logits of weights_sha256 {'1' * 12}, expected those of" in text


def test_mistakes_are_one_line(
    tool: ModuleType, evaluate: Callable[..., Path], tmp_path: Path
) -> None:
    run, output = evaluate("a"), tmp_path / "out"
    logits = logits_of(run)
    metrics = logits.parent / "metrics.json"

    def text(*options: str) -> str:
        return message(lambda: tool.main(tool.parse_args(["--runs", str(run), *options])))

    assert "no such folder" in message(lambda: analyze(tool, output, tmp_path / "none"))
    assert "found no result on 'other'" in text("--dataset", "other")
    stored = metrics.read_text()
    changed = json.loads(stored)
    changed["metrics"]["mIoU"] += 1
    metrics.write_text(json.dumps(changed))
    assert "of the metrics.json beside them; evaluate again" in text()
    metrics.write_text(stored)
    file = logits / "0.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert re.search(r"0\.safetensors: found damaged logits \(SafetensorError: ", text())
    file.write_bytes(whole)
    (logits / "index.json").write_text("{}")
    assert "found damaged logits (KeyError: 'format'); evaluate again" in text()
    shutil.rmtree(logits)
    command = f"--weights CHECKPOINT OUTPUT_DIR {run} TEST.SAVE_LOGITS True"
    assert text().endswith(command)
    # An earlier version kept none beside the result.
    for folder in (metrics.parent, run):
        (folder / "config.yaml").unlink()
    assert "found no config.yaml" in text()
