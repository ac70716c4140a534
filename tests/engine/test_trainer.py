"""Whole tiny trainings: reproducible, resumable, blind to unseen labels."""

from __future__ import annotations

import json
import math
import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from helpers.tiny_run import (
    UNSEEN,
    VOID,
    Call,
    changed,
    equal,
    exit_of,
    losses,
    short_run,
    train,
    train_labels,
    weights,
    write_tiny_dataset,
)
from PIL import Image

from tagclip import ZeroShotTrainer
from tagclip.checkpoint import last_checkpoint
from tagclip.errors import ConfigError, DatasetError, NonFiniteLossError
from tagclip.evaluation import ZeroShotSemSegEvaluator
from tagclip.structures.vocabulary import Vocabulary
from tagclip.visualization.panels import save_png

NOVEL = ("MODEL.TAGCLIP.TRUSTY.TARGET", "novel", "DATASETS.ZERO_SHOT.ALLOW_NOVEL_MASKS", True)


@pytest.fixture
def cfg(tiny_cfg: CfgNode, tmp_path: Path) -> CfgNode:
    """Ten steps of two random crops with dropout, on a dataset that exists; no evaluation."""
    steps = ("SOLVER.MAX_ITER", 10, "SOLVER.WARMUP_ITERS", 4, "SOLVER.BASE_LR", 0.01)
    return short_run(tiny_cfg, tmp_path, *steps)


def send_sigterm(trainer: Any) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_same_seed_same_bits_whatever_the_workers(cfg: CfgNode) -> None:
    first = train(cfg)
    assert len(losses(first)) == 10
    again = train(cfg, "DATALOADER.NUM_WORKERS", 2)
    assert losses(again) == losses(first)
    assert equal(weights(again.model), weights(first.model))
    other = train(cfg, "SEED", 1)
    assert not equal(weights(other.model), weights(first.model))
    assert all(losses(other)[i] != losses(first)[i] for i in range(10))


def test_stopped_by_sigterm_and_resumed_equals_straight(cfg: CfgNode, tmp_path: Path) -> None:
    straight = train(cfg, "OUTPUT_DIR", str(tmp_path / "straight"))
    handler = signal.getsignal(signal.SIGTERM)
    stop = Call(4, send_sigterm)
    assert exit_of(lambda: train(cfg, hook=stop)) == 0
    assert signal.getsignal(signal.SIGTERM) == handler
    output = Path(cfg.OUTPUT_DIR)
    assert [path.name for path in output.glob("*.pth")] == ["model_0000004.pth"]
    resumed = train(cfg, resume=True)
    assert resumed.start_iter == 5
    # Those of the steps before come from the checkpoint: the curve shows medians.
    assert losses(resumed) == losses(straight)
    assert equal(weights(resumed.model), weights(straight.model))
    final = [torch.load(path / "model_final.pth") for path in (output, tmp_path / "straight")]
    for slot in ("exp_avg", "exp_avg_sq"):
        states = [checkpoint["optimizer"]["state"] for checkpoint in final]
        assert all(torch.equal(states[0][i][slot], states[1][i][slot]) for i in states[0])
    assert final[0]["trainer"] == final[1]["trainer"]


def die(trainer: Any) -> None:
    raise InterruptedError


@pytest.mark.parametrize("earlier", ["finished", "unfinished", "untagged"])
def test_a_new_run_that_dies_early_is_not_resumed_as_the_earlier_one(
    cfg: CfgNode, tmp_path: Path, earlier: str, caplog: pytest.LogCaptureFixture
) -> None:
    steps = ("SOLVER.MAX_ITER", 4, "SOLVER.CHECKPOINT_PERIOD", 2)
    if earlier == "finished":
        train(cfg, *steps)
    else:
        with pytest.raises(InterruptedError):
            train(cfg, *steps, hook=Call(2, die, after=True))
    output, tag = Path(cfg.OUTPUT_DIR), Path(cfg.OUTPUT_DIR) / "last_checkpoint"
    if earlier == "untagged":
        tag.unlink()
    before = {path: path.read_bytes() for path in output.glob("*.pth")}
    assert before
    # Mended in place: the same config and files, and another model.
    for path in train_labels(tmp_path):
        Image.fromarray((np.asarray(Image.open(path)) != 0).astype(np.uint8)).save(path)
    trainer = ZeroShotTrainer(changed(cfg, *steps))
    trainer.resume_or_load(resume=False)
    trainer.register_hooks([Call(0, die, after=True)])
    with pytest.raises(InterruptedError):
        trainer.train()
    assert {path: path.read_bytes() for path in output.glob("*.pth")} == before
    assert last_checkpoint(output) == ""
    resumed = train(cfg, *steps, resume=True)
    assert resumed.start_iter == 0
    name = "model_final.pth" if earlier == "finished" else "model_0000001.pth"
    assert (
        f"starting a new run (to go on with an earlier one, stop this, edit {tag};" in caplog.text
    )
    assert f"write the name of one into it, such as {name})" in caplog.text
    straight = train(cfg, *steps, "OUTPUT_DIR", str(tmp_path / "straight"))
    assert equal(weights(resumed.model), weights(straight.model))
    assert tag.read_text() == "model_final.pth" == Path(last_checkpoint(output)).name


@pytest.mark.parametrize("start", [0, 18])
def test_stopped_where_the_curve_is_written_it_ends_as_elsewhere(cfg: CfgNode, start: int) -> None:
    """After the first steps detectron2's printer, called once more, would divide by zero."""
    more = ("SOLVER.MAX_ITER", 30, "SOLVER.CHECKPOINT_PERIOD", 100)
    if start:
        train(cfg, "SOLVER.MAX_ITER", start)
    else:
        more = ("SOLVER.MAX_ITER", 2)
    iteration = 19 if start else 1
    hook = Call(iteration, send_sigterm)
    assert exit_of(lambda: train(cfg, *more, hook=hook, resume=bool(start))) == 0
    saved = Path(cfg.OUTPUT_DIR, "last_checkpoint").read_text()
    assert saved == f"model_{iteration:07d}.pth"


def test_scrambled_unseen_labels_leave_the_weights_alone(cfg: CfgNode, tmp_path: Path) -> None:
    inductive, novel = train(cfg), train(cfg, *NOVEL)
    generator = np.random.default_rng(1)
    for path in train_labels(tmp_path):
        label = np.asarray(Image.open(path)).copy()
        hidden = np.isin(label, [*UNSEEN, VOID])
        assert hidden.any() and not hidden.all()
        label[hidden] = generator.choice([*UNSEEN, VOID], hidden.sum())
        Image.fromarray(label).save(path)
    scrambled = train(cfg)
    assert equal(weights(scrambled.model), weights(inductive.model))
    assert losses(scrambled) == losses(inductive)
    # The released code's target reads where unseen pixels are: the comparison can fail.
    assert not equal(weights(train(cfg, *NOVEL).model), weights(novel.model))


def test_trainable_parameters_learn_and_frozen_ones_never_change(cfg: CfgNode) -> None:
    before: dict[str, torch.Tensor] = {}
    trainer = train(cfg, hook=Call(0, lambda trainer: before.update(weights(trainer.model))))
    after = weights(trainer.model)
    trainable = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert 0 < len(trainable) < len(after)
    assert all(name.startswith(("backbone.prompts.", "sem_seg_head.")) for name in trainable)
    with_gradient = {n for n, p in trainer.model.named_parameters() if p.grad is not None}
    assert with_gradient == trainable
    assert {name for name in after if not torch.equal(after[name], before[name])} == trainable


def test_bfloat16_trains(cfg: CfgNode) -> None:
    full = train(cfg)
    mixed = train(cfg, "SOLVER.AMP.ENABLED", True)
    values = [value for step in losses(mixed).values() for value in step.values()]
    assert len(values) == 40 and all(map(math.isfinite, values))
    assert losses(mixed)[0] != losses(full)[0]
    assert losses(mixed)[0]["total_loss"] == pytest.approx(losses(full)[0]["total_loss"], rel=0.05)
    assert all(p.dtype == torch.float32 for p in mixed.model.parameters())


def break_a_weight(trainer: Any) -> None:
    next(p for p in trainer.model.parameters() if p.requires_grad).data.fill_(math.nan)


@pytest.mark.parametrize("iteration", [3, 9])
def test_broken_loss_stops_with_the_images_and_a_dump(
    cfg: CfgNode, tmp_path: Path, iteration: int
) -> None:
    with pytest.raises(NonFiniteLossError) as caught:
        train(cfg, hook=Call(iteration, break_a_weight))
    assert isinstance(caught.value, FloatingPointError)
    message = str(caught.value)
    assert "\n" not in message
    assert re.search(rf"iteration {iteration}, .*loss_mask nan.*expected finite.*BASE_LR", message)
    names = re.findall(rf"{tmp_path}/images/train/\d\.png", message)
    assert len(names) == 2
    dump = torch.load(Path(cfg.OUTPUT_DIR) / "nan_dump.pth", weights_only=True)
    assert (dump["iteration"], dump["seed"], dump["file_names"]) == (iteration, 0, names)
    assert dump["batch"][0]["image"].dtype == torch.uint8
    assert any(tensor.isnan().any() for tensor in dump["model"].values())
    assert not list(Path(cfg.OUTPUT_DIR).glob("model_*.pth"))


def test_a_run_that_fails_in_its_last_step_is_not_evaluated(tiny_cfg: CfgNode, cfg: CfgNode):
    with pytest.raises(NonFiniteLossError):
        train(cfg, "DATASETS.TEST", tiny_cfg.DATASETS.TEST, hook=Call(9, break_a_weight))
    assert not (Path(cfg.OUTPUT_DIR) / "inference").exists()


def test_evaluates_on_the_way_and_keeps_no_checkpoint_for_its_score(
    tiny_cfg: CfgNode, cfg: CfgNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated = []
    evaluate = ZeroShotSemSegEvaluator.evaluate
    monkeypatch.setattr(
        ZeroShotSemSegEvaluator,
        "evaluate",
        lambda self: evaluated.append(evaluate(self)) or evaluated[-1],
    )
    test = tiny_cfg.DATASETS.TEST
    trainer = train(cfg, "DATASETS.TEST", test, "TEST.EVAL_PERIOD", 3, "SEED", 5)
    assert len(evaluated) == 4
    output = Path(cfg.OUTPUT_DIR)
    # Only the period and the end make checkpoints; none is chosen by seen, unseen or any mIoU.
    assert {path.name for path in output.glob("*.pth")} == {"model_final.pth"}
    assert "Best" not in " ".join(type(hook).__name__ for hook in trainer._hooks)
    check_result(output / "inference" / test[0] / "metrics.json", evaluated[-1]["sem_seg"])
    curve = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    (step,) = [line for line in curve if line["iteration"] == 9]
    assert {"total_loss", "loss_mask", "loss_dice", "loss_trusty", "lr"} <= set(step)
    # Evaluation between the steps leaves the training alone.
    plain = train(cfg, "SEED", 5, "OUTPUT_DIR", str(output / "plain"))
    assert equal(weights(plain.model), weights(trainer.model))


@pytest.mark.parametrize("kind", ["train", "val"])
def test_labels_that_say_they_are_other_classes_are_not_learnt_nor_scored(
    tiny_cfg: CfgNode, cfg: CfgNode, tmp_path: Path, kind: str
) -> None:
    """Such as those of segment, registered with a class list in another order."""
    vocabulary = Vocabulary.from_metadata(cfg.DATASETS.TRAIN[0])
    (value, name), (_, other), *_ = vocabulary.value_names.items()
    path = min((tmp_path / "labels" / kind).iterdir())
    save_png(path, Image.open(path), words={value: other})
    test = ("DATASETS.TEST", tiny_cfg.DATASETS.TEST, "SOLVER.MAX_ITER", 1)
    with pytest.raises(DatasetError) as caught:
        train(cfg, *test)
    assert str(caught.value).startswith(f"{path}: found a label file that was made with other wor")
    save_png(path, Image.open(path), words={value: name})
    train(cfg, *test)


def check_result(path: Path, expected: dict[str, float]) -> None:
    result = json.loads(path.read_text())
    assert result["metrics"]["mIoU"] == pytest.approx(expected["mIoU"])
    said = result["run"]
    assert said["seed"] == 5
    assert said["protocol"].startswith("inductive, split zs: 3 seen / 2 unseen; unseen labels dr")
    assert "trusty target = seen" in said["protocol"]
    for fingerprint in (said["clip_sha256"], said["training_vocabulary"]):
        assert re.fullmatch(r"[0-9a-f]{16,64}", fingerprint)
    assert result["vocabulary_fingerprint"] != said["training_vocabulary"]
    assert "/" not in json.dumps({**said, "protocol": ""})


def test_a_dataset_of_somebody_else_whose_name_is_none_of_a_folder(
    tiny_cfg: CfgNode, tmp_path: Path
) -> None:
    """detectron2's catalogs take any name."""
    write_tiny_dataset(tmp_path)
    (name,) = tiny_cfg.DATASETS.TEST
    DatasetCatalog.register("city/val", DatasetCatalog[name])
    try:
        known = MetadataCatalog.get(name)
        MetadataCatalog.get("city/val").set(
            vocabulary=known.vocabulary, evaluator_type=known.evaluator_type
        )
        cfg = changed(tiny_cfg, "DATASETS.TEST", ("city/val",))
        with pytest.raises(ConfigError, match=r"dataset 'city/val': found a name .*'city_val'"):
            ZeroShotTrainer.check(cfg, weights="", train=True)
    finally:
        DatasetCatalog.remove("city/val")
        MetadataCatalog.remove("city/val")
