"""Fitting of the additive gate: what is held out, what is asked, what wins."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from helpers.tiny_run import (
    CLASSES,
    UNSEEN,
    VOID,
    changed,
    exit_of,
    load_tool,
    own_loggers,
    train_labels,
    write_tiny_dataset,
)
from helpers.toy_dataset import forget
from PIL import Image

from tagclip import Vocabulary, ZeroShotTrainer, register_zero_shot_sem_seg
from tagclip.analysis.bias_curves import BiasCurve
from tagclip.analysis.gate_comparison import compare_gates
from tagclip.analysis.gate_fitting import (
    SCALES,
    _without_labels,
    best_constants,
    held_out_classes,
    held_out_curves,
    refuse_unshown,
)
from tagclip.data import Protocol, read_label
from tagclip.data.datasets.changed_copies import changed_datasets, write_vocabulary
from tagclip.errors import ConfigError, DatasetError, VocabularyError
from tagclip.evaluation import confusion_matrix
from tagclip.modeling.inference.gate import Gate
from tagclip.utils.cli import run_tool

FIT_GATE = load_tool(Path(__file__).resolve().parents[2] / "tools" / "fit_gate.py")


@pytest.fixture
def cfg(tiny_cfg: CfgNode, tmp_path: Path) -> CfgNode:
    write_tiny_dataset(tmp_path)
    return changed(
        tiny_cfg,
        "SOLVER.IMS_PER_BATCH", 2,
        "SOLVER.MAX_ITER", 2,
        "SOLVER.WARMUP_ITERS", 1,
        "SOLVER.CHECKPOINT_PERIOD", 1,
        "MODEL.TAGCLIP.TRUSTY.KIND", "conv",
    )  # fmt: skip


def test_words_name_whole_classes_or_parts_of_names() -> None:
    names = ["red ball", "blue ball", "red flag", "football", "sea"]
    vocabulary = Vocabulary.from_names(names, seen=["red ball", "blue ball", "football", "sea"])
    assert held_out_classes(vocabulary, "ball") == ["red ball", "blue ball"]
    assert held_out_classes(vocabulary, "sea, red") == ["sea", "red ball"]
    for words, message in (
        ("flag", "found 'flag', expected a seen class"),
        ("", "found ''"),
        ("ball,sea,football", "names all 4 seen classes"),
    ):
        with pytest.raises(VocabularyError, match=message):
            held_out_classes(vocabulary, words)


def test_held_out_classes_join_the_unseen_ones(cfg: CfgNode, tmp_path: Path) -> None:
    full = Vocabulary.from_metadata(cfg.DATASETS.TRAIN[0], cfg.DATASETS.ZERO_SHOT.SPLIT)
    seen = [name for name in full.names if name not in full.unseen_names]
    path = write_vocabulary(_without_labels(full, seen[:1]), tmp_path / "held_out.json")
    with changed_datasets(cfg, vocabulary=path) as other:
        other.DATASETS.ZERO_SHOT.SPLIT = ""
        assert Protocol(other).training.names == seen[1:]


def curve(biases: list[float], hiou: list[float]) -> BiasCurve:
    values = np.array(hiou, float)
    return BiasCurve(np.array(biases), values, values, values, values)


def test_the_best_pair_has_the_highest_mean() -> None:
    biases = [-1.0, 0.0, 1.0]
    flat = {scale: curve(biases, [1, 1, 1]) for scale in SCALES}
    first = {**flat, 0.3: curve(biases, [0, 50, 80]), 0.7: curve(biases, [0, 60, 0])}
    second = {**flat, 0.3: curve(biases, [0, 50, 10]), 0.7: curve(biases, [0, 45, 0])}
    found = best_constants([first, second])
    assert (found.scale, found.bias, found.hiou) == (0.7, 0.0, 52.5)
    assert best_constants([first]).bias == 1.0


@pytest.mark.parametrize(
    ("biases", "hiou", "bias"),
    [
        ([-np.inf, -1.0, 2.0, np.inf], [9, 0, 0, 9], -1.0),
        ([-np.inf, -2047.0, 0.0, 2047.0, np.inf], [0, 9, 5, 9, 0], 0.0),
    ],
)
def test_the_bias_is_one_that_the_config_takes(
    biases: list[float], hiou: list[float], bias: float
) -> None:
    found = best_constants([{scale: curve(biases, hiou) for scale in SCALES}])
    assert found.bias == Gate(bias=found.bias, scale=found.scale).bias == bias


def test_gates_are_those_of_the_model_itself(cfg: CfgNode) -> None:
    """Against the labels of the model with each gate, one image at a time."""
    model = ZeroShotTrainer.build_model(cfg).eval()
    (dataset,) = cfg.DATASETS.TEST
    vocabulary = Protocol(cfg).asked(dataset)
    gates = {
        "none": Gate("none", bias=0.01),
        "lift": Gate(form="lift", bias=0.02, scale=0.4),
    }
    found = compare_gates(cfg, model, dataset, vocabulary, vocabulary, gates)
    for name, gate in gates.items():
        model.gate = gate
        expected = np.zeros((CLASSES, CLASSES), dtype=np.int64)
        for batch in ZeroShotTrainer.build_test_loader(cfg, dataset):
            labels = model(batch)[0]["sem_seg_labels"].numpy()
            truth = read_label(batch[0]["file_name"].replace("images", "labels"))
            expected += confusion_matrix(vocabulary.label_lut()[truth], labels, CLASSES)
        assert np.array_equal(found[name].confusion, expected)


def test_the_runs_own_unseen_classes_take_no_part(cfg: CfgNode, tmp_path: Path) -> None:
    (dataset,) = cfg.DATASETS.TEST
    full = Protocol(cfg).asked(dataset)
    held_out = [name for index, name in enumerate(full.names) if index not in UNSEEN][:1]
    asked = []
    encode = held_out_curves.__globals__["compare_gates"]

    def spy(cfg: CfgNode, model: object, name: str, vocabulary: Vocabulary, *rest: object) -> dict:
        asked.append(vocabulary)
        return encode(cfg, model, name, vocabulary, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(held_out_curves.__globals__, "compare_gates", spy)
        curves = held_out_curves(cfg, dataset, held_out, tmp_path / "held_out_0", "")
    assert curves.keys() == set(SCALES)
    (vocabulary,) = asked
    assert vocabulary.names == [n for n in full.names if n not in full.unseen_names]
    assert vocabulary.unseen_names == held_out


def test_pixels_may_be_those_of_the_weights(cfg: CfgNode, tmp_path: Path) -> None:
    (dataset,) = cfg.DATASETS.TEST
    full = Protocol(cfg).asked(dataset)
    held_out = [name for index, name in enumerate(full.names) if index not in UNSEEN][:1]
    opts = ("MODEL.PIXEL_MEAN", [], "MODEL.PIXEL_STD", [], "INPUT.INTERPOLATION", "weights")
    # What is expected of the test set is of no training here.
    opts += ("TEST.EXPECTED_RESULTS", [["sem_seg", "mIoU", 50.0, 0.1]])
    open_cfg = changed(cfg, *opts, "INPUT.RESIZE", "pil")
    assert held_out_curves(open_cfg, dataset, held_out, tmp_path / "held_out", "").keys() == set(
        SCALES
    )


def test_a_run_without_map_or_of_another_setting_is_refused(cfg: CfgNode, tmp_path: Path) -> None:
    for key, value in (
        ("DATASETS.ZERO_SHOT.SETTING", "supervised"),
        ("MODEL.TAGCLIP.TRUSTY.ENABLED", False),
    ):
        with pytest.raises(ConfigError, match="expected inductive and True to fit a gate"):
            held_out_curves(changed(cfg, key, value), "tiny_val", ["a"], tmp_path, "")


def test_a_training_without_learning_is_refused(cfg: CfgNode, tmp_path: Path) -> None:
    still = changed(cfg, "SOLVER.BASE_LR", 0.0, "SOLVER.MIN_LR", 0.0)
    with pytest.raises(
        ConfigError, match=r"^SOLVER\.BASE_LR: found 0, .*no class would be learned"
    ):
        held_out_curves(still, cfg.DATASETS.TEST[0], ["cat"], tmp_path / "held_out", "")
    assert not (tmp_path / "held_out").exists()


def test_the_command_writes_the_keys(
    cfg: CfgNode, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(cfg.dump())
    (dataset,) = cfg.DATASETS.TEST
    full = Protocol(cfg).asked(dataset)
    seen = [name for name in full.names if name not in full.unseen_names]
    options = ["--config-file", str(path), "--dataset", dataset, "--output", str(tmp_path / "fit")]
    words = [*options, "--hold-out", seen[0], "--hold-out", seen[1]]
    with pytest.raises(ConfigError, match=f"--dataset {dataset}: found the test set of .*; name"):
        FIT_GATE.main(FIT_GATE.parse_args(words))
    assert not (tmp_path / "fit").exists()
    others = ["DATASETS.TEST", repr(cfg.DATASETS.TRAIN)]
    for twice in ([seen[0]], [seen[2], "--hold-out", f"{seen[1]}, {seen[0]}"]):
        more = ["--hold-out", f"{seen[0]}, {seen[1]}", "--hold-out", *twice]
        with pytest.raises(ConfigError, match=f"found {seen[0]}.* more than once, expected oth"):
            FIT_GATE.main(FIT_GATE.parse_args([*words, *more, *others]))
    assert not (tmp_path / "fit").exists()
    args = FIT_GATE.parse_args([*words, *others])
    assert exit_of(FIT_GATE.main, args) is None
    found = json.loads((tmp_path / "fit" / "gate.json").read_text())
    assert found["held_out"] == [[seen[0]], [seen[1]]] and found["GATE_SCALE"] in SCALES
    assert f"GATE_SCALE {found['GATE_SCALE']}" in capsys.readouterr().out
    # Its trainings are those of this config and no other.
    with pytest.raises(ConfigError, match=r"held_out_0: found the finished run of .*BASE_LR.*; na"):
        FIT_GATE.main(FIT_GATE.parse_args([*words, *others, "SOLVER.BASE_LR", "0.5"]))
    # Nor does it go on with those of another config or other classes that did not finish.
    for name in ("model_final.pth", "last_checkpoint"):
        (tmp_path / "fit" / "held_out_0" / name).unlink()
    for other in (
        [*words, *others, "SOLVER.BASE_LR", "0.5"],
        [*options, "--hold-out", seen[2], *others],
    ):
        match = r"held_out_0: found the unfinished run of .*\(.*\), expected .*; name another --out"
        with pytest.raises(ConfigError, match=match):
            FIT_GATE.main(FIT_GATE.parse_args(other))
    assert exit_of(FIT_GATE.main, args) is None
    for key in ("OUTPUT_DIR", "MODEL.WEIGHTS"):
        assert exit_of(FIT_GATE.parse_args, [*words, key, "x"]) == 2
    (tmp_path / "tuned.yaml").write_text(changed(cfg, "MODEL.WEIGHTS", "a.pth").dump())
    tuned = [str(tmp_path / "tuned.yaml") if word == str(path) else word for word in words]
    with pytest.raises(ConfigError, match=r"MODEL\.WEIGHTS: found .*a\.pth, expected none: a gate"):
        FIT_GATE.main(FIT_GATE.parse_args([*tuned, *others]))


def test_a_group_that_the_images_do_not_show_is_found_before_a_training(
    cfg: CfgNode, tmp_path: Path
) -> None:
    args = fit_arguments(cfg, tmp_path)
    full = Protocol(cfg).asked(args.dataset)
    first, second, third = (n for n in full.names if n not in full.unseen_names)
    shown = [full.names.index(first), full.names.index(second), UNSEEN[0]]
    for file in (tmp_path / "labels" / "val").iterdir():
        labels = read_label(file)
        labels = np.where(np.isin(labels, shown), labels, VOID)
        Image.fromarray(labels.astype(np.uint8)).save(file)

    def fit(*groups: str) -> str:
        words = ["--config-file", args.config_file, "--dataset", args.dataset]
        words += ["--output", args.output]
        words += [word for names in groups for word in ("--hold-out", names)]
        parsed = FIT_GATE.parse_args([*map(str, words), "DATASETS.TEST", "()"])
        with pytest.raises(DatasetError) as caught, own_loggers():
            FIT_GATE.main(parsed)
        assert not list(args.output.glob("held_out_*"))
        return str(caught.value)

    of_group = f"--hold-out {third}: found no labelled pixel of them in --dataset {args.dataset}, "
    remedy = "expected some to fit on; hold out other classes, or name a --dataset that shows them"
    assert fit(first, third) == of_group + remedy
    # Of a group of which something is shown it is asked that another seen class is, too.
    of_others = f"--hold-out {first}, {second}: found no labelled pixel of other seen classes in --"
    assert fit(f"{first},{second}").startswith(of_others)
    # Groups that are shown need no more.
    refuse_unshown(cfg, args.dataset, [[first], [second, third]])
    refuse_unshown(cfg, args.dataset, [[first.upper()], [f" {second}", third]])


def fit_arguments(cfg: CfgNode, root: Path, test_sets: str = "()") -> argparse.Namespace:
    """Of a fit on the test set of a config, which gets others, with one seen class held out."""
    (path := root / "config.yaml").write_text(cfg.dump())
    (dataset,) = cfg.DATASETS.TEST
    full = Protocol(cfg).asked(dataset)
    seen = next(name for name in full.names if name not in full.unseen_names)
    words = ["--config-file", path, "--dataset", dataset, "--hold-out", seen]
    words += ["--output", root / "fit", "DATASETS.TEST", test_sets]
    return FIT_GATE.parse_args(list(map(str, words)))


def test_models_of_other_labels_are_not_gone_on_with(cfg: CfgNode, tmp_path: Path) -> None:
    """Of the same names; with the labels as they were, the same command goes on."""
    args = fit_arguments(cfg, tmp_path)
    FIT_GATE.main(args)
    path = train_labels(tmp_path)[3]
    before, labels = path.read_bytes(), read_label(path)
    Image.fromarray(np.where(labels == 0, 2, labels).astype(np.uint8)).save(path)
    match = r"held_out_0: found the finished run of .*\(the training labels, or an image \(their co"
    with pytest.raises(ConfigError, match=f"{match}.*; name another --output"):
        FIT_GATE.main(args)
    FIT_GATE.main(argparse.Namespace(**vars(args) | {"output": tmp_path / "again"}))
    path.write_bytes(before)
    FIT_GATE.main(args)
    # One of an earlier version does not say: its labels are taken to be these.
    final = tmp_path / "fit" / "held_out_0" / "model_final.pth"
    checkpoint = torch.load(final)
    del checkpoint["tagclip"]["training_contents"]
    torch.save(checkpoint, final)
    FIT_GATE.main(args)


def test_images_of_the_training_or_of_the_test_set_are_named(
    cfg: CfgNode, tmp_path: Path, tiny_vocabulary_json: str
) -> None:
    """By their bytes: the test set has another name here."""
    train, val = tmp_path / "images" / "train", tmp_path / "images" / "val"
    shutil.copytree(val, other := tmp_path / "other")
    test_set = f"tested_{tmp_path.name}"
    register_zero_shot_sem_seg(
        test_set, other, tmp_path / "labels" / "val", tiny_vocabulary_json, image_ext="png"
    )
    args = fit_arguments(cfg, tmp_path, f"('{test_set}',)")
    of_test = f"images of the test set {test_set}, too ({val / '0.png'} is {other / '0.png'}); what"
    (line,) = shared_lines(args)
    assert f"3 of its 3 images are {of_test}" in line
    for kind in ("images", "labels"):
        shutil.copy(tmp_path / kind / "train" / "4.png", tmp_path / kind / "val" / "1.png")
    args.output = tmp_path / "again"
    of_train = f"1 of its 3 images are training images, too ({val / '1.png'} is {train / '4.png'})"
    (first, second) = shared_lines(args)
    assert of_train in first and f"2 of its 3 images are {of_test}" in second
    forget(test_set)


def shared_lines(args: argparse.Namespace) -> list[str]:
    """What the command said about images of the dataset that it fits on."""
    with own_loggers():
        FIT_GATE.main(args)
    lines = (args.output / "log.txt").read_text().splitlines()
    return [line for line in lines if f"WARNING: {args.dataset}: " in line]


def test_constants_of_nothing_are_not_handed_out(
    cfg: CfgNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Where no held-out pixel is found with any bias, as after too short a training."""
    (path := tmp_path / "config.yaml").write_text(cfg.dump())
    (dataset,) = cfg.DATASETS.TEST
    full = Protocol(cfg).asked(dataset)
    seen = next(name for name in full.names if name not in full.unseen_names)
    nothing = {scale: curve([-np.inf, -1.0, 1.0, np.inf], [0] * 4) for scale in SCALES}
    monkeypatch.setattr("tagclip.analysis.gate_fitting.held_out_curves", lambda *_: nothing)
    output = tmp_path / "fit"
    words = ["--config-file", path, "--dataset", dataset, "--output", output, "--hold-out", seen]
    args = FIT_GATE.parse_args([*map(str, words), "DATASETS.TEST", repr(cfg.DATASETS.TRAIN)])
    said = exit_of(run_tool, FIT_GATE.main, args)
    assert str(said).startswith(f"ConfigError: {output}: found hIoU 0 on {dataset} with every ")
    assert "more images, more iterations (SOLVER.MAX_ITER) or other --hold-out" in str(said)
    assert not (output / "gate.json").exists() and "SEEN_BIAS" not in capsys.readouterr().out


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_training_that_a_signal_ends_has_fitted_nothing(
    cfg: CfgNode,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    number: int,
    code: int,
) -> None:
    """It saves and ends with 0, which would be that of the command; the same one goes on."""
    (path := tmp_path / "config.yaml").write_text(cfg.dump())
    (dataset,) = cfg.DATASETS.TEST
    full = Protocol(cfg).asked(dataset)
    seen = next(name for name in full.names if name not in full.unseen_names)
    options = ["--config-file", str(path), "--dataset", dataset, "--output", str(tmp_path / "fit")]
    others = ["DATASETS.TEST", repr(cfg.DATASETS.TRAIN)]
    args = FIT_GATE.parse_args([*options, "--hold-out", seen, *others])
    step = ZeroShotTrainer.after_step

    def stopped(self: ZeroShotTrainer) -> None:
        os.kill(os.getpid(), number)
        step(self)

    # Under nohup a hang-up is nothing that ends a run.
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(ZeroShotTrainer, "after_step", stopped)
            assert exit_of(run_tool, FIT_GATE.main, args) == code
    finally:
        signal.signal(number, before)
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"Stopped by {signal.Signals(number).name}: {FIT_GATE.GOES_ON}"
    assert not (tmp_path / "fit" / "gate.json").exists()
    assert list((tmp_path / "fit").rglob("model_*.pth"))
    assert exit_of(run_tool, FIT_GATE.main, args) is None
    assert (tmp_path / "fit" / "gate.json").is_file()
