"""tools/train_net.py: train, evaluate again, resume, and what stops it before it starts."""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from detectron2.engine import default_argument_parser
from helpers.miniature_trees import snapshot
from helpers.tiny_run import UNSEEN, VOID, exit_of, load_tool, run_arguments
from PIL import Image

from tagclip.errors import CheckpointError, ConfigError
from tagclip.evaluation.results import read_result_rows
from tagclip.utils.cli import run_tool


def read_result(output: Path) -> dict[str, Any]:
    (path,) = output.glob("inference/*/metrics.json")
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    "line",
    [
        "",
        "--config-file a.yaml --resume SEED 3",
        "--eval-only --config-file a.yaml MODEL.WEIGHTS w.pth TEST.AUG.ENABLED True",
        "--num-gpus 8 --num-machines 2 --machine-rank 1 --dist-url tcp://10.0.0.1:5 SEED -1",
    ],
)
def test_the_command_line_is_detectron2s(
    line: str, train_net: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["train_net.py", *line.split()])
    expected = vars(default_argument_parser().parse_args(line.split()))
    assert vars(train_net.parse_args()) == expected | {
        "prove_protocol": None,
        "overwrite": False,
    }


def test_help_imports_nothing_slow(repository: Path) -> None:
    command = [sys.executable, "-X", "importtime", "tools/train_net.py", "--help"]
    result = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True)
    assert "--eval-only" in result.stdout and "usage: train_net.py " in result.stdout
    assert "argparse" in result.stderr
    assert not {"torch", "detectron2", "numpy"} & set(result.stderr.replace("|", " ").split())


@pytest.fixture
def evaluate_net(repository: Path) -> ModuleType:
    """tools/evaluate_net.py as a module."""
    return load_tool(repository / "tools" / "evaluate_net.py")


@pytest.mark.parametrize(
    ("line", "long"),
    [
        ("--config-file a.yaml --weights w.pth SEED 3", "MODEL.WEIGHTS w.pth SEED 3"),
        ("--config-file a.yaml --resume --num-gpus 2", "--resume --num-gpus 2"),
        ("--config-file a.yaml MODEL.WEIGHTS w.pth", "--weights w.pth"),
    ],
)
def test_evaluate_is_train_with_eval_only(
    line: str, long: str, train_net: ModuleType, evaluate_net: ModuleType
) -> None:
    expected = train_net.parse_args(f"--eval-only --config-file a.yaml {long}".split())
    assert evaluate_net.parse_args(line.split()) == expected


@pytest.mark.parametrize("words", [["--weights", "w.pth"], ["MODEL.WEIGHTS", "w.pth"]])
def test_named_weights_or_the_last_of_a_run(
    train_net: ModuleType, evaluate_net: ModuleType, words: list[str]
) -> None:
    """Both are the last: the others would be left out without a word."""
    words = ["--config-file", "a.yaml", "--resume", "SEED", "3", *words]
    assert exit_of(evaluate_net.parse_args, words) == 2
    assert exit_of(train_net.parse_args, ["--eval-only", *words]) == 2
    # A training that goes on names what it began with.
    assert train_net.parse_args(words).resume


def test_evaluate_gives_what_train_with_eval_only_gives(
    train_net: ModuleType,
    evaluate_net: ModuleType,
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As commands, of the last checkpoint and of a named one."""
    run = tmp_path / "run"
    train_net.main(run_arguments(config, "OUTPUT_DIR", run, "SEED", 3))
    found = []
    weights = str(run / "model_final.pth")
    for tool, words in (
        (train_net, ["--eval-only", "MODEL.WEIGHTS", weights]),
        (evaluate_net, ["--weights", weights]),
        (evaluate_net, ["--resume", "OUTPUT_DIR", str(run)]),
    ):
        output = [] if "--resume" in words else ["OUTPUT_DIR", str(tmp_path / tool.__name__)]
        monkeypatch.setattr(sys, "argv", ["tool", "--config-file", str(config), *words, *output])
        assert exit_of(tool.invoke_main) is None
        result = read_result(Path((output or words)[-1]))
        found.append((result["metrics"], result["confusion"]))
    assert found[0] == found[1] == found[2]


def test_evaluation_reproduces_the_training_run(
    train_net: ModuleType, config: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    results = train_net.main(run_arguments(config, "OUTPUT_DIR", output, "SEED", 3))
    trained = read_result(output)
    assert results["sem_seg"]["mIoU"] == trained["metrics"]["mIoU"]
    rows = read_result_rows(output / "results.csv")[1]
    assert [(row["config"], row["iterations"], row["seed"]) for row in rows] == [
        ("Base-ZeroShot.yaml", "4", "3")
    ]
    assert rows[0]["mIoU"] == str(round(results["sem_seg"]["mIoU"], 4))
    log = (output / "log.txt").read_text()
    assert log.count("Protocol: inductive, split zs: 3 seen / 2 unseen") == 1
    assert len(np.unique(np.array(trained["confusion"]).nonzero()[1])) > 1

    weights = ("MODEL.WEIGHTS", output / "model_final.pth")
    variants = {
        "again": (),
        "windows": ("MODEL.TAGCLIP.TEST.WINDOW_BATCH", 3),
        "memory": ("MODEL.TAGCLIP.TEST.WORKSPACE_MIB", 1),
        "workers": ("DATALOADER.NUM_WORKERS", 2),
    }
    for name, opts in variants.items():
        folder = tmp_path / name
        arguments = run_arguments(config, "OUTPUT_DIR", folder, *weights, *opts, eval_only=True)
        repeated = train_net.main(arguments)
        assert repeated.keys() == results.keys()
        np.testing.assert_equal(repeated["sem_seg"], results["sem_seg"])
        again = read_result(folder)
        for key in ("metrics", "classes", "confusion", "vocabulary_fingerprint"):
            assert again[key] == trained[key], (name, key)
        assert len(read_result_rows(folder / "results.csv")[1]) == 1
        # The seed is the one that the weights were trained with, not the config's.
        assert again["run"]["seed"] == trained["run"]["seed"] == 3
        assert again["run"]["weights"] == "model_final.pth"
        assert len(again["run"]["weights_sha256"]) == 64
        assert (folder / "log.txt").read_text().count("Protocol: inductive") == 1
        assert not list(folder.glob("*.pth"))


def test_evaluation_with_several_views(train_net: ModuleType, config: Path, tmp_path: Path) -> None:
    several = ("TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", "(48, 70)", "TEST.AUG.MAX_SIZE", 0)
    # The one view that INPUT.MIN_SIZE_TEST says.
    single = (*several, "TEST.AUG.MIN_SIZES", "(64,)", "TEST.AUG.FLIP", False)

    def arguments(folder: str, *opts: Any) -> argparse.Namespace:
        weights = ("MODEL.WEIGHTS", tmp_path / "output" / "model_final.pth")
        options = ("OUTPUT_DIR", tmp_path / folder, *weights, *opts)
        return run_arguments(config, *options, eval_only=True)

    def evaluate(folder: str, *opts: Any) -> dict[str, Any]:
        train_net.main(arguments(folder, *opts))
        return read_result(tmp_path / folder)

    plain = train_net.main(run_arguments(config))["sem_seg"]["mIoU"]
    views, one = evaluate("views", *several), evaluate("one", *single)
    scores = evaluate("scores", *several, "MODEL.TAGCLIP.TEST.OUTPUT", "scores")
    assert one["metrics"]["mIoU"] == plain
    assert views["confusion"] != one["confusion"]
    assert views["images"] == 3 and views["confusion"] == scores["confusion"]
    assert views["run"]["test_augmentation"]["MIN_SIZES"] == [48, 70]
    wrong = arguments("wrong", *several, "TEST.AUG.MIN_SIZES", "()")
    line = exit_of(run_tool, train_net.start, wrong)
    assert line.startswith("ConfigError: TEST.AUG.MIN_SIZES") and "()" in line
    assert not (tmp_path / "wrong").exists()


def refuse_constant(name: str) -> None:
    raise ValueError(name)


def test_every_json_of_a_run_is_valid(train_net: ModuleType, config: Path, tmp_path: Path) -> None:
    """Also where a metric has no value: no unseen class is in the images."""
    for file in (tmp_path / "labels" / "val").iterdir():
        labels = np.asarray(Image.open(file)).copy()
        labels[np.isin(labels, UNSEEN)] = VOID
        Image.fromarray(labels).save(file)
    output = tmp_path / "run"
    opts = ("OUTPUT_DIR", output, "TEST.SAVE_PREDICTIONS", "json", "TEST.EVAL_PERIOD", 2)
    results = train_net.main(run_arguments(config, *opts))
    assert math.isnan(results["sem_seg"]["hIoU"])
    texts = {path: [path.read_text()] for path in output.rglob("*.json")}
    curve = output / "metrics.json"
    texts[curve] = curve.read_text().splitlines()
    assert len(texts) == 4
    for lines in texts.values():
        for line in lines:
            json.loads(line, parse_constant=refuse_constant)
    evaluated = [line for line in map(json.loads, texts[curve]) if "sem_seg/hIoU" in line]
    assert [line["sem_seg/hIoU"] for line in evaluated] == [None, None]


def test_a_drawn_seed_is_kept(train_net: ModuleType, config: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    options = ("OUTPUT_DIR", output, "SEED", -1, "MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 0)
    train_net.main(run_arguments(config, *options))
    seed = read_result(output)["run"]["seed"]
    assert seed == yaml.safe_load((output / "config.yaml").read_text())["SEED"] >= 0
    log = (output / "log.txt").read_text()
    assert f"Seed: {seed}" in log
    assert "No part of TagCLIP reads MODEL.SEM_SEG_HEAD.IGNORE_VALUE: leave them out" in log
    first = torch.load(output / "model_final.pth")["tagclip"]["seed"]
    assert first == seed
    train_net.main(run_arguments(config, *options, "SOLVER.MAX_ITER", 6, resume=True))
    assert torch.load(output / "model_final.pth")["tagclip"]["seed"] == seed
    curve = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    assert curve[-1]["iteration"] == 6
    # --resume goes before MODEL.WEIGHTS in evaluation, too.
    arguments = run_arguments(config, *options, eval_only=True, resume=True)
    train_net.main(arguments)
    assert read_result(output)["run"]["weights"] == "model_final.pth"
    # Another run with -1 draws another seed, although checkpoints lie in its folder.
    train_net.main(run_arguments(config, *options, "SOLVER.MAX_ITER", 1, overwrite=True))
    assert torch.load(output / "model_final.pth")["tagclip"]["seed"] != seed


def test_a_training_of_another_start_is_not_gone_on_with(
    train_net: ModuleType, config: Path, tmp_path: Path
) -> None:
    """It would take the place of what is asked for, and results would name the wrong file."""
    first, other = tmp_path / "first", tmp_path / "other"
    half = ("SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.MAX_ITER", 2)
    for output, seed in ((first, 1), (other, 2)):
        train_net.main(run_arguments(config, "OUTPUT_DIR", output, "SEED", seed, *half))
    more = ("OUTPUT_DIR", first, "SEED", 1, "SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.MAX_ITER", 4)
    weights = other / "model_final.pth"
    with pytest.raises(CheckpointError) as error:
        train_net.main(run_arguments(config, *more, "MODEL.WEIGHTS", weights, resume=True))
    assert str(error.value) == (
        f"MODEL.WEIGHTS: found {weights}, expected what the training in {first} began from (CLIP), "
        "which --resume continues; leave it out, or give MODEL.WEIGHTS '' where the config names "
        "it, to go on with that training, or name another OUTPUT_DIR"
    )
    train_net.main(run_arguments(config, *more, resume=True))
    # Its own start is another matter.
    tuned = ("OUTPUT_DIR", tmp_path / "tuned", "SEED", 1, "SOLVER.CHECKPOINT_PERIOD", 2)
    tuned += ("MODEL.WEIGHTS", weights)
    train_net.main(run_arguments(config, *tuned, "SOLVER.MAX_ITER", 2))
    train_net.main(run_arguments(config, *tuned, "SOLVER.MAX_ITER", 4, resume=True))
    content = torch.load(tmp_path / "tuned" / "model_final.pth")
    assert content["iteration"] == 3


def test_an_evaluation_leaves_the_config_of_the_training(
    train_net: ModuleType, config: Path, tmp_path: Path
) -> None:
    """Else the next training with that config would go on with this one's model."""
    output = tmp_path / "run"
    train_net.main(run_arguments(config, "OUTPUT_DIR", output, "SEED", 1))
    kept, weights = output / "config.yaml", output / "model_final.pth"
    (result,) = output.glob("inference/*/config.yaml")
    before = kept.read_text()
    assert yaml.safe_load(before)["MODEL"]["WEIGHTS"] == "" and result.read_text() == before
    changes = ("OUTPUT_DIR", output, "TEST.SAVE_PREDICTIONS", "png")
    for weights_of, resume in ((("MODEL.WEIGHTS", weights), False), ((), True)):
        arguments = run_arguments(kept, *changes, *weights_of, eval_only=True, resume=resume)
        train_net.main(arguments)
        assert kept.read_text() == before
        found = yaml.safe_load(result.read_text())
        assert found["MODEL"]["WEIGHTS"] == str(weights)
        assert found["TEST"]["SAVE_PREDICTIONS"] == "png"
    train_net.main(run_arguments(kept, "SOLVER.MAX_ITER", 5, resume=True))
    # A folder of evaluations alone is of the last of them.
    for seed in (1, 2):
        other = ("OUTPUT_DIR", tmp_path / "other", "MODEL.WEIGHTS", weights)
        changes = ("MODEL.TAGCLIP.TEST.SEEN_BIAS", 0.1 * seed)
        train_net.main(run_arguments(config, *other, *changes, eval_only=True))
        found = yaml.safe_load((tmp_path / "other" / "config.yaml").read_text())
        assert found["MODEL"]["TAGCLIP"]["TEST"]["SEEN_BIAS"] == 0.1 * seed


@pytest.mark.parametrize("text", ["# lr of the paper\n_BASE_: {}\n", "notes: [1\n", "3\n"])
def test_a_config_that_no_run_wrote_stays(
    train_net: ModuleType, config: Path, tmp_path: Path, text: str
) -> None:
    """One folder for an experiment, with what was written by hand in it."""
    (own := tmp_path / "exp" / "config.yaml").parent.mkdir()
    own.write_text(text.format(config))
    weights = tmp_path / "run" / "model_final.pth"
    train_net.main(run_arguments(config, "OUTPUT_DIR", weights.parent))
    given = own if "_BASE_" in text else config
    for eval_only in (False, True):
        words = ("OUTPUT_DIR", own.parent, *("MODEL.WEIGHTS", weights) * eval_only)
        with pytest.raises(ConfigError) as caught:
            train_net.main(run_arguments(given, *words, eval_only=eval_only))
        assert str(caught.value).startswith(f"OUTPUT_DIR {own.parent}: found a config.yaml that no")
    assert [*own.parent.iterdir()] == [own] and own.read_text() == text.format(config)
    # What it asks for.
    own = own.rename(own.with_name("mine.yaml"))
    train_net.main(run_arguments(config, "OUTPUT_DIR", own.parent))
    # The config stays; a folder that holds a model may be evaluated there.
    (own.parent / "config.yaml").write_text(text.format(config))
    train_net.main(run_arguments(config, *words, eval_only=True))
    assert (own.parent / "config.yaml").read_text() == text.format(config)


def test_a_published_model_keeps_its_config(
    train_net: ModuleType, config: Path, tmp_path: Path, repository: Path
) -> None:
    weights, out = tmp_path / "run" / "model_final.pth", tmp_path / "published"
    train_net.main(run_arguments(config, "OUTPUT_DIR", weights.parent))
    publish = load_tool(repository / "tools" / "publish_model.py")
    publish.main(publish.parse_args(["--weights", str(weights), "--output", str(out)]))
    before = snapshot(out)
    for eval_only in (False, True):
        words = ("OUTPUT_DIR", out, *("MODEL.WEIGHTS", out) * eval_only)
        with pytest.raises(ConfigError, match="found a model of tagclip publish, whose config"):
            train_net.main(run_arguments(config, *words, eval_only=eval_only))
        assert snapshot(out) == before
    words = ("OUTPUT_DIR", tmp_path / "results", "MODEL.WEIGHTS", out)
    train_net.main(run_arguments(config, *words, eval_only=True))


def test_a_training_that_is_not_gone_on_with_keeps_its_config(
    train_net: ModuleType, config: Path, tmp_path: Path
) -> None:
    half = ("OUTPUT_DIR", tmp_path / "run", "SOLVER.MAX_ITER", 2, "SOLVER.CHECKPOINT_PERIOD", 2)
    train_net.main(run_arguments(config, *half, "SEED", 1))
    kept = tmp_path / "run" / "config.yaml"
    before = kept.read_text()
    other = ("SOLVER.MAX_ITER", 4, "DATASETS.ZERO_SHOT.SETTING", "supervised")
    with pytest.raises(CheckpointError):
        train_net.main(run_arguments(config, *half, *other, resume=True))
    assert kept.read_text() == before


@pytest.mark.parametrize("weights", ["", "other"])
def test_nothing_takes_the_place_of_the_checkpoint_that_resume_evaluates(
    train_net: ModuleType, config: Path, tmp_path: Path, weights: str
) -> None:
    """A config may name what its training starts from; its score is not that of the run."""
    if weights:
        weights = tmp_path / "other" / "model_final.pth"
        train_net.main(run_arguments(config, "OUTPUT_DIR", weights.parent, "SEED", 1))
    mistyped = ("OUTPUT_DIR", tmp_path / "mistyped", "MODEL.WEIGHTS", weights)
    with pytest.raises(CheckpointError) as error:
        train_net.main(run_arguments(config, *mistyped, eval_only=True, resume=True))
    assert str(error.value) == (
        f"OUTPUT_DIR {tmp_path / 'mistyped'}: found no checkpoint of a training, expected one, "
        "which --resume evaluates; mend OUTPUT_DIR, or give --weights in the place of --resume"
    )
    assert not (tmp_path / "mistyped").exists()


def test_evaluation_of_nothing(train_net: ModuleType, config: Path, tmp_path: Path) -> None:
    line = exit_of(run_tool, train_net.start, run_arguments(config, eval_only=True))
    assert line.startswith("CheckpointError: MODEL.WEIGHTS is empty, expected a checkpoint to eval")
    assert not (tmp_path / "output").exists()


def test_evaluation_on_nothing(train_net: ModuleType, config: Path, tmp_path: Path) -> None:
    arguments = run_arguments(config, "DATASETS.TEST", "()", "SOLVER.MAX_ITER", 1)
    train_net.main(arguments)
    options = ("DATASETS.TEST", "()", "MODEL.WEIGHTS", tmp_path / "output" / "model_final.pth")
    options = (*options, "OUTPUT_DIR", tmp_path / "other")
    line = exit_of(run_tool, train_net.start, run_arguments(config, *options, eval_only=True))
    assert line == "ConfigError: DATASETS.TEST: found no dataset, expected one at least to evaluate"
    assert not (tmp_path / "other").exists()


def test_a_checkpoint_that_does_not_fit(
    train_net: ModuleType, config: Path, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    train_net.main(run_arguments(config, "DATASETS.TEST", "()"))
    other = tmp_path / "other"
    options = ("MODEL.WEIGHTS", output / "model_final.pth", "MODEL.CLIP.PROMPT.NUM_TOKENS", 4)
    for eval_only in (True, False):
        arguments = run_arguments(config, *options, "OUTPUT_DIR", other, eval_only=eval_only)
        line = exit_of(run_tool, train_net.start, arguments)
        assert line.startswith(f"CheckpointError: {output}/model_final.pth: does not fit the model")
        assert not other.exists()
    options = (*options, "OUTPUT_DIR", other, "TEST.ALLOW_PARTIAL_WEIGHTS", True)
    results = train_net.main(run_arguments(config, *options, eval_only=True))
    assert 0 <= results["sem_seg"]["mIoU"] <= 100


def test_more_processes_than_gpus(train_net: ModuleType, config: Path) -> None:
    wanted = torch.cuda.device_count() + 2
    arguments = run_arguments(config, "MODEL.DEVICE", "cuda", num_gpus=wanted)
    line = exit_of(run_tool, train_net.start, arguments)
    assert line.startswith("ConfigError: --num-gpus: found ")
    assert line.endswith(f", or MODEL.DEVICE cpu for {wanted} processes on CPUs")


def test_output_that_cannot_be_written(train_net: ModuleType, config: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    arguments = run_arguments(config, "OUTPUT_DIR", tmp_path / "file" / "run")
    line = exit_of(run_tool, train_net.start, arguments)
    assert line.startswith(f"ConfigError: OUTPUT_DIR {tmp_path}/file/run: found no folder to write")


def test_a_table_of_results_that_is_none_stops_the_run_before_it_starts(
    train_net: ModuleType, config: Path, tmp_path: Path
) -> None:
    table = tmp_path / "run" / "results.csv"
    table.parent.mkdir()
    table.write_text("dataset;mIoU\n")
    arguments = run_arguments(config, "OUTPUT_DIR", table.parent)
    line = exit_of(run_tool, train_net.start, arguments)
    assert line.startswith(f"ConfigError: {table}: found the header 'dataset;mIoU'")
    assert list(table.parent.iterdir()) == [table]


def test_as_a_process(repository: Path, config: Path, tmp_path: Path) -> None:
    config.write_text(config.read_text() + "\nMAX_ITERS: 1\n")
    command = [sys.executable, "tools/train_net.py", "--config-file", str(config)]
    result = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr == (
        f"ConfigError: {config}: unknown config key MAX_ITERS; did you mean SOLVER.MAX_ITER?\n"
    )
    assert result.stdout == ""
    assert not (tmp_path / "output").exists()
