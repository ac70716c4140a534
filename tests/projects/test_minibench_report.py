"""The report of a run: honest choice of images, complete files, a page that needs nothing else."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from helpers.full_disk import largest_file
from helpers.html import Page
from helpers.miniature_trees import snapshot
from helpers.tiny_run import exit_of, load_tool
from helpers.toy_dataset import forget, write_sample
from PIL import Image

from tagclip import (
    ZeroShotDatasetMapper,
    ZeroShotTrainer,
    load_config,
    register_zero_shot_sem_seg,
)
from tagclip.data import read_label
from tagclip.errors import CheckpointError, ConfigError, OutputError, TagCLIPError
from tagclip.projects.minibench import VOCABULARY_JSON
from tagclip.projects.minibench.generate import scene
from tagclip.projects.minibench.report import render_page, write_report
from tagclip.projects.minibench.report_gallery import Predicted, choose_images, draw_gallery
from tagclip.projects.minibench.report_run import TrainedRun, load_model, read_run

DATASET = "minibench_report"
FILES = {"gallery.png", "per_class_iou.png", "training_curve.png", "report.html"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[Path]:
    """OUTPUT_DIR of two iterations on nine images of MiniBench."""
    folder = tmp_path_factory.mktemp("report")
    for index in range(9):
        drawn = scene("val", index)
        write_sample(folder, f"{index:06d}", drawn.image, drawn.label)
    register_zero_shot_sem_seg(
        DATASET, folder / "images", folder / "labels", VOCABULARY_JSON, image_ext="png"
    )
    output = folder / "output"
    opts = {
        "DATASETS.TRAIN": (DATASET,),
        "DATASETS.TEST": (DATASET,),
        "MODEL.DEVICE": "cpu",
        "OUTPUT_DIR": str(output),
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.MAX_ITER": 2,
        "SOLVER.WARMUP_ITERS": 1,
    }
    configs = repository / "projects" / "MiniBench" / "configs"
    config = configs / "tagclip_minibench_noun_fence_board_convtrust.yaml"
    cfg = load_config(config, [word for pair in opts.items() for word in pair])
    output.mkdir()
    (output / "config.yaml").write_text(cfg.dump())
    trainer = ZeroShotTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    yield output
    forget(DATASET)


@pytest.fixture
def run_folder(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture(scope="module")
def run(finished: Path) -> TrainedRun:
    return read_run(finished)


def test_all_files_are_written_and_the_same_every_time(run_folder: Path) -> None:
    before = {file.name for file in run_folder.iterdir()}
    _, files = write_report(run_folder)
    assert {file.name for file in files} == FILES and files[-1].name == "report.html"
    assert {file.name for file in run_folder.iterdir()} == before | FILES
    contents = [file.read_bytes() for file in files]
    assert [file.read_bytes() for file in write_report(run_folder)[1]] == contents
    assert (run_folder / "gallery.png").stat().st_size < 700_000
    with Image.open(run_folder / "gallery.png") as picture:
        assert picture.width == 4 * 288 + 3 * 8 + 2 * 10 and picture.height > 6 * 288
    page = Page((run_folder / "report.html").read_text(encoding="utf-8"))
    assert set(page.pictures) == set(contents[:3])


def test_the_page_shows_the_result_and_loads_nothing(run: TrainedRun) -> None:
    page = Page(render_page(run, "Chosen so & so.", dict.fromkeys(
        ("gallery", "per_class_iou", "training_curve"), b"png")))  # fmt: skip
    text = " ".join(page.words)
    assert run.result["run"]["protocol"] in text and "Chosen so & so." in text
    for name in run.vocabulary.names:
        assert (f"★ {name}" in text) == (name in run.vocabulary.unseen_names)
    # Masks may have trained what the vocabulary calls unseen.
    assert "★ counts as unseen;" in text and "no mask" not in text
    for name, value in run.result["metrics"].items():
        index = page.words.index(name)
        shown = next(word for word in page.words[index + 1 :] if word.strip())
        assert shown == ("n/a" if value is None else f"{value:.2f}")
    links = [value for _, key, value in page.attributes if key in ("src", "href")]
    assert links and all(value.startswith("data:image/png;base64,") for value in links)


def test_names_are_escaped(run: TrainedRun) -> None:
    entries = run.vocabulary.classes
    evil = replace(entries[0], name="<script>alert('&')</script>", prompts=())
    vocabulary = replace(run.vocabulary, classes=(evil, *entries[1:]))
    pictures = dict.fromkeys(("gallery", "per_class_iou", "training_curve"), b"png")
    result = run.result | {"dataset": "<i>", "split": '"><b>'}
    page = render_page(replace(run, vocabulary=vocabulary, result=result), "<u>", pictures)
    assert all(tag not in page for tag in ("<script", "<i>", "<b>", "<u>"))
    assert "<script>alert('&')</script>" in Page(page).words


def naive_miou(truth: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the classes of the truth, in percent; only labelled pixels count."""
    valid = truth != 255
    ious = []
    for k in np.unique(truth[valid]):
        both = ((truth == k) & (labels == k) & valid).sum()
        either = (((truth == k) | (labels == k)) & valid).sum()
        ious.append(100 * both / either)
    return float(np.mean(ious))


def test_images_are_spread_over_the_ranking(run: TrainedRun) -> None:
    model, seen = load_model(run), run.vocabulary.seen_mask
    mapper = ZeroShotDatasetMapper(run.cfg, is_train=False, dataset_name=DATASET)
    ranking = []
    for sample in DatasetCatalog.get(DATASET):
        truth = read_label(sample["sem_seg_file_name"])
        (output,) = model([mapper(sample)])
        kinds = seen[np.unique(truth[truth != 255])]
        if kinds.any() and not kinds.all():
            score = naive_miou(truth, output["sem_seg_labels"].numpy())
            ranking.append((-score, Path(sample["file_name"]).stem, truth, output))
    ranking.sort(key=lambda entry: entry[:2])
    images, sentence = choose_images(run, model)
    total = len(ranking)
    assert total == 7 and f"Shown: 6 of the {total} test images with seen and" in sentence
    places = {1: "best", 2: "rank 2", 3: "rank 3", 5: "rank 5", 6: "rank 6", 7: "worst"}
    for image, (rank, place) in zip(images, places.items(), strict=True):
        loss, stem, truth, output = ranking[rank - 1]
        assert image.title == f"{place} of {total}: image {stem}, mIoU {-loss:.1f}"
        assert (image.truth == truth).all() and image.image.shape == (96, 96, 3)
        assert (image.labels == output["sem_seg_labels"].numpy()).all()
        assert (image.trusty == output["trusty"].float().numpy()).all()


def test_a_gallery_without_trusty_token_has_three_columns(run: TrainedRun) -> None:
    drawn = scene("val", 0)
    labels = drawn.label.astype(np.int16)
    image = Predicted("best", drawn.image, labels, np.zeros_like(labels), None)
    widths = [
        draw_gallery([replace(image, trusty=trusty)], run.vocabulary).shape[1]
        for trusty in (None, np.zeros((96, 96), np.float32))
    ]
    assert widths[1] - widths[0] == 288 + 8


def test_the_metrics_of_another_model_are_refused(run_folder: Path) -> None:
    path = run_folder / "inference" / DATASET / "metrics.json"
    result = json.loads(path.read_text())
    result["metrics"]["mIoU"] += 3
    path.write_text(json.dumps(result))
    with pytest.raises(CheckpointError, match="last checkpoint reaches mIoU .*; evaluate"):
        write_report(run_folder)
    assert not FILES & {file.name for file in run_folder.iterdir()}


def test_what_is_missing_is_named(run_folder: Path, tmp_path: Path) -> None:
    def message(kind: type[TagCLIPError], folder: Path = run_folder) -> str:
        with pytest.raises(kind) as caught:
            write_report(folder)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "found no config.yaml" in message(ConfigError, tmp_path / "nowhere")
    path = run_folder / "inference" / DATASET / "metrics.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps(result | {"vocabulary_fingerprint": "0" * 64}))
    assert "class list has changed" in message(ConfigError)
    path.write_text(path.read_text()[:100])
    assert str(path) in message(ConfigError)
    path.unlink()
    assert f"{path}: no such file" in message(ConfigError)
    path.write_text(json.dumps(result))
    (run_folder / "last_checkpoint").unlink()
    for checkpoint in run_folder.glob("*.pth"):
        checkpoint.unlink()
    assert "found no last_checkpoint" in message(CheckpointError)


def test_a_checkpoint_that_was_only_evaluated_is_shown(run_folder: Path, run: TrainedRun) -> None:
    (run_folder / "last_checkpoint").unlink()
    cfg = run.cfg.clone()
    cfg.MODEL.WEIGHTS = str(run_folder / "model_final.pth")
    model = load_model(replace(run, folder=run_folder, cfg=cfg))
    for name, parameter in load_model(run).named_parameters():
        assert (dict(model.named_parameters())[name] == parameter).all()


def test_the_tool_prints_the_table_and_the_files(
    run_folder: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    path = repository / "projects" / "MiniBench" / "make_report.py"
    spec = importlib.util.spec_from_file_location("make_report", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr(sys, "argv", ["make_report.py", "--run", str(run_folder)])
    tool.invoke_main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Protocol: inductive, split noun_fence_board: 16 seen / 8 unseen")
    assert any(line.split()[0] == "mIoU-unseen" for line in lines)
    assert {Path(line.split()[1]).name for line in lines if line.startswith("Written: ")} == FILES

    path = run_folder / "inference" / DATASET / "metrics.json"
    result = json.loads(path.read_text())
    for extra, is_noted in (({}, False), ({"mIoU-absent-as-0": 12.345}, True)):
        metrics = {k: v for k, v in result["metrics"].items() if not k.endswith("-absent-as-0")}
        path.write_text(json.dumps(result | {"metrics": metrics | extra}))
        tool.invoke_main()
        for text in (capsys.readouterr().out, (run_folder / "report.html").read_text()):
            assert ("The means of this project" in text) == is_noted == ("12.35" in text)

    monkeypatch.setattr(sys, "argv", ["make_report.py", "--run", str(run_folder / "none")])
    with pytest.raises(SystemExit) as caught:
        tool.invoke_main()
    line = f"ConfigError: {run_folder / 'none'}: found no config.yaml"
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)


def test_one_run_is_named_in_one_way(
    run_folder: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    tool = load_tool(repository / "projects" / "MiniBench" / "make_report.py")
    shown: list[Path] = []
    monkeypatch.setattr(tool, "report", shown.append)
    for words in ([], ["a"], ["--run", "a"], ["a", "--run", "./a"]):
        monkeypatch.setattr(sys, "argv", ["make_report.py", *words])
        tool.invoke_main()
    assert shown == [Path("output/minibench"), Path("a"), Path("a"), Path("a")]
    monkeypatch.setattr(sys, "argv", ["make_report.py", "a", "--run", "b"])
    assert exit_of(tool.invoke_main) == 2 and len(shown) == 4
    assert capsys.readouterr().err.endswith("error: expected one run, found a and --run b\n")


def test_a_full_disk_leaves_the_report_that_is_there(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures and page belong together; what a kill has left goes."""
    write_report(run_folder)
    before = snapshot(run_folder)
    path = run_folder / "metrics.json"
    path.write_text(path.read_text().replace("total_loss", "other_loss"))
    changed = snapshot(run_folder)
    limit = len((run_folder / "report.html").read_bytes()) - 1000
    with largest_file(limit), pytest.raises(OutputError) as caught:
        write_report(run_folder)
    assert caught.value.filename == str(run_folder / "report.html")
    assert snapshot(run_folder) == changed
    (run_folder / ".files.0123abcd.tmp").mkdir()
    (run_folder / ".files.0123abcd.tmp" / "gallery.png").touch()
    write_report(run_folder)
    after = snapshot(run_folder)
    assert after.keys() == before.keys()
    names = {name for name in after if after[name] != changed[name]}
    assert names == {"training_curve.png", "report.html"}


def test_the_curve_is_what_was_logged_last(
    run_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [
        {"iteration": 19, "total_loss": 3.0, "lr": 0.1},
        {"iteration": 39, "total_loss": 9.0, "lr": 0.2},
        {"iteration": 39, "total_loss": 2.0, "lr": 0.2, "pixel_accuracy": 50.0},
        {"iteration": 40, "sem_seg/hIoU": 30.0},
    ]
    text = "\n".join(map(json.dumps, lines)) + '\n{"iteration": 59, "tot'
    (run_folder / "metrics.json").write_text(text)
    curve = read_run(run_folder).curve
    assert list(curve) == [19, 39, 40] and curve[39]["total_loss"] == 2.0
    assert "line 5 is damaged" in caplog.text
    # What is no text is a damaged line, too.
    with (run_folder / "metrics.json").open("ab") as file:
        file.write(b"\n\0\xff")
    assert list(read_run(run_folder).curve) == [19, 39, 40]
    # Anew, and shorter.
    lines += [{"iteration": 19, "total_loss": 8.0}, {"iteration": 20, "sem_seg/hIoU": 1.0}]
    (run_folder / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
    assert read_run(run_folder).curve == {19: lines[-2], 20: lines[-1]}
