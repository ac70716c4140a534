"""A folder that holds a finished run: what may train there, and what --overwrite removes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from detectron2.config import CfgNode
from helpers.processes import command, start, write_config
from helpers.tiny_run import (
    changed,
    equal,
    exit_of,
    own_loggers,
    run_arguments,
    short_run,
    train,
    write_tiny_dataset,
)

from tagclip import TagCLIPPredictor, ZeroShotTrainer, load_config
from tagclip.checkpoint import read_checkpoint
from tagclip.data import Protocol
from tagclip.data.datasets.changed_copies import changed_datasets, write_vocabulary
from tagclip.errors import ConfigError
from tagclip.utils.cli import run_tool

ADVICE = (
    ", expected a folder without a finished run of another config; name another OUTPUT_DIR, or "
    "give --resume (continues that run) or --overwrite (removes it)"
)


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture
def output(train_net: ModuleType, config: Path, tmp_path: Path) -> Path:
    """OUTPUT_DIR of a finished run of ``config``."""
    with own_loggers():
        train_net.main(run_arguments(config))
    return tmp_path / "output"


def test_labels_that_are_read_by_other_colours_are_other_labels(
    tiny_cfg: CfgNode, tmp_path: Path
) -> None:
    """No key and no file of labels says so."""
    cfg = short_run(tiny_cfg, tmp_path, "SOLVER.MAX_ITER", 1)
    plain = Protocol(cfg).full

    def start(colors: list[tuple[int, int, int] | None]) -> None:
        pairs = zip(plain.classes, colors, strict=True)
        classes = tuple(replace(entry, color=color) for entry, color in pairs)
        path = write_vocabulary(replace(plain, classes=classes), tmp_path / "colors.json")
        with changed_datasets(cfg, vocabulary=path) as colored:
            trainer = ZeroShotTrainer(colored)
            trainer.resume_or_load(resume=False)
            trainer.train()

    colors = [(n, 1, 2) for n in range(len(plain))]
    # None, and then some, read no gray file otherwise.
    start([None] * len(plain))
    start(colors)
    (tmp_path / "output" / "model_final.pth").unlink()
    start(colors)
    start(colors)
    with pytest.raises(ConfigError) as caught:
        start([*reversed(colors)])
    assert "(the colours of the class list, by which label files may be read)" in str(caught.value)


def test_a_run_of_several_configs_is_none_of_the_last(
    train_net: ModuleType, config: Path, tmp_path: Path
) -> None:
    """Its results are no repetition of that one, and that one does not replace it."""

    def run(folder: str, *opts: object, **more: bool) -> dict[str, Any]:
        own = ("OUTPUT_DIR", tmp_path / folder, "SOLVER.CHECKPOINT_PERIOD", 2)
        with own_loggers():
            train_net.main(run_arguments(config, *own, *opts, **more))
        (result,) = (tmp_path / folder).glob("inference/*/metrics.json")
        return json.loads(result.read_text())["run"]

    def saved() -> dict[str, Any]:
        return read_checkpoint(tmp_path / "a" / "model_final.pth")["tagclip"]

    straight = run("straight", "SOLVER.MAX_ITER", 6)
    run("a", "SOLVER.BASE_LR", 0.05)
    assert "resumed" not in saved()
    record = run("a", "SOLVER.MAX_ITER", 6, resume=True)
    (text,) = saved()["resumed"]
    assert text.startswith("after iteration 3 with SOLVER.") and "SOLVER.MAX_ITER 6 (was 4)" in text
    assert record["config_hash"] == straight["config_hash"]
    assert record["trained_config"] != straight["trained_config"]
    before = contents(tmp_path / "a")
    opts = ("OUTPUT_DIR", tmp_path / "a", "SOLVER.MAX_ITER", 6)
    line = exit_of(run_tool, train_net.start, run_arguments(config, *opts))
    assert f"(resumed {text}" in line and contents(tmp_path / "a") == before
    # It says so after another interruption, too.
    for name in ("model_final.pth", "model_0000005.pth"):
        (tmp_path / "a" / name).unlink()
    (tmp_path / "a" / "last_checkpoint").write_text("model_0000003.pth")
    again = run("a", "SOLVER.MAX_ITER", 6, resume=True)
    assert saved()["resumed"] == [text] and again["trained_config"] == record["trained_config"]


def test_another_config_is_refused_before_anything_is_written(
    train_net: ModuleType, config: Path, output: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(yaml.dump(yaml.safe_load(config.read_text()) | {"CONFIG_NAME": "other.yaml"}))
    weights = tmp_path / "start.pth"
    weights.write_bytes((output / "model_final.pth").read_bytes())
    before = contents(output)
    differences: dict[str, Iterable[Any]] = {
        "SOLVER.MAX_ITER 6 (was 4)": ("SOLVER.MAX_ITER", 6),
        "SEED 5 (was 0)": ("SEED", 5),
        "MODEL.WEIGHTS start.pth (was empty)": ("MODEL.WEIGHTS", weights),
        "MODEL.TAGCLIP.LAYERS n (was ": ("MODEL.TAGCLIP.LAYERS", "n"),
    }
    for difference, opts in differences.items():
        line = exit_of(run_tool, train_net.start, run_arguments(other, *opts))
        found = f"ConfigError: OUTPUT_DIR {output}: found the finished run of Base-ZeroShot.yaml ("
        assert line.startswith(found) and line.endswith(ADVICE)
        assert difference in line
        assert contents(output) == before
    # Each remedy ends the trouble.
    more = ("SOLVER.MAX_ITER", 6)
    train_net.main(run_arguments(other, *more, "OUTPUT_DIR", tmp_path / "elsewhere"))
    assert contents(output) == before
    train_net.main(run_arguments(other, *more, resume=True))
    curve = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in curve if "total_loss" in line] == [3, 5]
    train_net.main(run_arguments(other, *more, "SEED", 5, overwrite=True))
    curve = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in curve if "total_loss" in line] == [5]
    assert torch.load(output / "model_final.pth")["tagclip"]["seed"] == 5


def test_what_is_no_other_finished_run_is_not_refused(
    train_net: ModuleType, config: Path, output: Path, tmp_path: Path
) -> None:
    weights = torch.load(output / "model_final.pth")["model"]
    same = ("DATALOADER.NUM_WORKERS", 1, "TEST.SAVE_PREDICTIONS", "png")
    with own_loggers():
        train_net.main(run_arguments(config, *same))
    assert equal(torch.load(output / "model_final.pth")["model"], weights)
    # Evaluation and proof replace no model.
    weights = ("MODEL.WEIGHTS", output / "model_final.pth", "MODEL.TAGCLIP.TEST.SEEN_BIAS", 0.3)
    with own_loggers():
        train_net.main(run_arguments(config, *weights, eval_only=True))
    proof = ["--config-file", str(config), "--prove-protocol", "1", "SEED", "7"]
    before = contents(output)
    train_net.prove(train_net.parse_args(proof))
    assert contents(output) == before
    # Killed before it finished.
    (output / "model_final.pth").unlink()
    train_net.main(run_arguments(config, "SOLVER.MAX_ITER", 2))


@pytest.mark.parametrize("kind", ["damaged", "foreign", "empty", "folder"])
def test_a_final_checkpoint_of_unknown_origin_is_not_replaced_unasked(
    kind: str, train_net: ModuleType, config: Path, tmp_path: Path
) -> None:
    path = tmp_path / "output" / "model_final.pth"
    path.parent.mkdir()
    if kind == "folder":
        path.mkdir()
    elif kind == "foreign":
        torch.save({"model": {"weight": torch.zeros(2)}}, path)
    else:
        path.write_bytes(b"not a checkpoint" if kind == "damaged" else b"")
    line = exit_of(run_tool, train_net.start, run_arguments(config))
    found = f"ConfigError: OUTPUT_DIR {path.parent}: found the finished run of an unknown config ("
    assert line.startswith(found) and line.endswith(ADVICE)
    train_net.main(run_arguments(config, overwrite=True))
    assert "tagclip" in read_checkpoint(path)


def test_an_earlier_checkpoint_counts_as_that_of_its_config(
    train_net: ModuleType, config: Path, output: Path
) -> None:
    """Keys that its config did not have yet are no difference."""
    path = output / "model_final.pth"
    checkpoint = torch.load(path)
    tree = yaml.safe_load(checkpoint["tagclip"]["config"])
    del tree["SOLVER"]["ACCUMULATE"], checkpoint["tagclip"]["provenance"]
    checkpoint["tagclip"]["config"] = yaml.dump(tree)
    torch.save(checkpoint, path)
    train_net.main(run_arguments(config))


def test_overwrite_removes_what_runs_wrote_and_nothing_else(
    train_net: ModuleType, config: Path, output: Path, tmp_path: Path
) -> None:
    evaluation = ("TEST.SAVE_PREDICTIONS", "png", "TEST.SAVE_LOGITS", True)
    evaluation = (*evaluation, "MODEL.WEIGHTS", output / "model_final.pth")
    with own_loggers():
        train_net.main(run_arguments(config, *evaluation, eval_only=True))
    of_run = {path for path in output.rglob("*") if path.is_file()} - {output / "config.yaml"}
    (dataset,) = (output / "inference").iterdir()
    mine = [
        *(output / name for name in ("notes.txt", "model_final.txt", "my_model_1.pth", "a/b.csv")),
        *(dataset / name for name in ("remarks.md", "mine/metrics.json")),
    ]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    args = run_arguments(config, "SOLVER.MAX_ITER", 6, overwrite=True)
    train_net.setup(args, *train_net.read_config(args, overwrite=True))
    # The log of this process is that of the first run: detectron2 keeps it open.
    assert not [path for path in of_run if path.exists()]
    # The training replaces it, unless something stops it before.
    assert load_config(output / "config.yaml").SOLVER.MAX_ITER == 4
    assert [path.read_text() for path in mine] == ["mine"] * len(mine)


@pytest.mark.parametrize("link", [False, True])
def test_overwrite_does_not_remove_what_the_run_starts_from(
    link: bool, train_net: ModuleType, config: Path, output: Path, tmp_path: Path
) -> None:
    weights = output / "model_final.pth"
    if link:
        weights = tmp_path / "link.pth"
        weights.symlink_to(output / "model_final.pth")
    before = contents(output)
    arguments = run_arguments(config, "MODEL.WEIGHTS", weights, overwrite=True)
    line = exit_of(run_tool, train_net.start, arguments)
    assert line.startswith(f"ConfigError: MODEL.WEIGHTS {weights}: found a file of the run that --")
    assert contents(output) == before


def test_the_trainer_refuses_too(tiny_cfg: Any, config: Path, tmp_path: Path) -> None:
    cfg = changed(load_config(config), "OUTPUT_DIR", str(tmp_path / "run"))
    train(cfg)
    ZeroShotTrainer(cfg).resume_or_load(resume=False)
    with pytest.raises(ConfigError, match=r"OUTPUT_DIR .*run: found the finished run of .*SEED 9"):
        ZeroShotTrainer(changed(cfg, "SEED", 9)).resume_or_load(resume=False)
    # What it starts from may be a folder.
    predictor = TagCLIPPredictor.from_checkpoint(tmp_path / "run" / "model_final.pth")
    predictor.save_pretrained(tmp_path / "published")
    other = changed(cfg, "MODEL.WEIGHTS", str(tmp_path / "published"))
    with pytest.raises(ConfigError, match="MODEL.WEIGHTS model.safetensors .was empty."):
        ZeroShotTrainer(other).resume_or_load(resume=False)
    tuned = changed(other, "OUTPUT_DIR", str(tmp_path / "tuned"))
    train(tuned)
    ZeroShotTrainer(tuned).resume_or_load(resume=False)
    assert train(cfg, "SOLVER.MAX_ITER", 6, resume=True).iter == 6


@pytest.mark.slow
def test_all_processes_refuse_or_go_on(tmp_path: Path, tiny_clip_json: str) -> None:
    """Two processes end with one line; with --overwrite they train."""
    write_tiny_dataset(tmp_path / "minibench")
    config, output = write_config(tmp_path, tiny_clip_json), tmp_path / "output"
    words = ("--config-file", config, "OUTPUT_DIR", output, "DATASETS.TEST", "()")
    assert not run(tmp_path, *words)[0]
    before = contents(output)
    same = ("--num-gpus", 2, *words, "MODEL.DEVICE", "cpu")
    two = (*same, "SOLVER.MAX_ITER", 1)
    for asked in (two, same):
        code, text = run(tmp_path, *asked)
        assert code == 1 and text.count("ConfigError: OUTPUT_DIR") == 1 and ADVICE in text
        assert contents(output) == before
    # Of so many the model is another one.
    assert "(2 processes (were 1))" in text
    code, text = run(tmp_path, "--overwrite", *two)
    assert not code, text
    assert torch.load(output / "model_final.pth")["iteration"] == 0
    assert not (output / "model_0000001.pth").exists()


def run(root: Path, *words: object) -> tuple[int, str]:
    """Exit code and text of tools/train_net.py as a process."""
    process = start(command(*words), root)
    text, _ = process.communicate(timeout=120)
    return process.returncode, text


@pytest.mark.parametrize("other", ["--resume", "--eval-only", "--prove-protocol 3"])
def test_overwrite_is_for_a_new_training(
    other: str, train_net: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        train_net.parse_args(["--overwrite", *other.split()])
    assert "--overwrite begins a new training" in capsys.readouterr().err
