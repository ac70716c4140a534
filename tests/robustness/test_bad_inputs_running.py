"""Bad runs: loss that is not finite, full GPU memory, signals, processes, no GPU."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.bench import NO_TEST, Bench, files_below, refused, refused_as_process
from helpers.pictures import picture
from helpers.tiny_run import changed, write_tiny_dataset
from torch import Tensor

from tagclip import TagCLIP, ZeroShotTrainer
from tagclip.checkpoint import read_checkpoint
from tagclip.engine.training_loop import TrainingLoop
from tagclip.modeling.backbone import CLIPViT
from tagclip.modeling.inference.fusion import ScoreFusion


def before_step(bench: Bench, iteration: int, function: Callable[[TrainingLoop], None]) -> None:
    """Call a function before one step of every training."""
    step = TrainingLoop.run_step

    def run_step(loop: TrainingLoop) -> None:
        if loop.iter == iteration:
            function(loop)
        step(loop)

    bench.patch.setattr(TrainingLoop, "run_step", run_step)


def break_a_weight(loop: TrainingLoop) -> None:
    next(p for p in loop.model.parameters() if p.requires_grad).data.fill_(math.nan)


def test_nan_loss(bench: Bench) -> None:
    """Losses, images and remedy; a dump of the step; earlier checkpoints stay, none is added."""
    before_step(bench, 3, break_a_weight)
    call = bench.training(*NO_TEST, "SOLVER.CHECKPOINT_PERIOD", 2)
    line = refused(
        call,
        "NonFiniteLossError: iteration 3, process 0: found losses loss_mask nan",
        "expected finite ones; lower SOLVER.BASE_LR or check these images: ",
    )
    dump = torch.load(bench.output / "nan_dump.pth", weights_only=True)
    assert dump["iteration"] == 3 and line.endswith(": " + ", ".join(dump["file_names"]))
    assert all(Path(name).is_file() for name in dump["file_names"]) and dump["file_names"]
    assert sorted(path.name for path in bench.output.glob("model_*")) == ["model_0000001.pth"]
    assert all(t.isfinite().all() for t in read_checkpoint(bench.output / "model_0000001.pth")[
        "model"].values())  # fmt: skip


def scaled_training(bench: Bench, *more: Any) -> ZeroShotTrainer:
    """A training whose loss scaling is too high for its two steps."""
    write_tiny_dataset(bench.root)
    opts = ("SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 2, "DATASETS.TEST", ())
    bench.output.mkdir()
    trainer = ZeroShotTrainer(changed(bench.cfg, *opts, *more))
    trainer._trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    return trainer


@pytest.mark.parametrize("parts", [1, 2])
def test_overflow_of_the_loss_scaling(bench: Bench, parts: int) -> None:
    """The scaler leaves these steps out; that is no broken loss."""
    trainer = scaled_training(bench, "SOLVER.ACCUMULATE", parts)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    assert trainer._trainer.grad_scaler.get_scale() == 2.0**125
    assert all(torch.equal(p, before[n]) for n, p in trainer.model.named_parameters())
    assert not (bench.output / "nan_dump.pth").exists()


def test_nan_under_loss_scaling(bench: Bench) -> None:
    before_step(bench, 1, break_a_weight)
    refused(scaled_training(bench).train, "NonFiniteLossError: iteration 1, process 0: found loss")
    assert (bench.output / "nan_dump.pth").exists()


def limit_windows(bench: Bench, most: int) -> list[int]:
    """Make the memory too small for more windows at a time; return the list of attempts."""
    attempts: list[int] = []
    forward = CLIPViT.forward

    def limited(self: CLIPViT, images: Tensor) -> Any:
        attempts.append(len(images))
        if len(images) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, images)

    bench.patch.setattr(CLIPViT, "forward", limited)
    # A CPU takes one at a time.
    bench.patch.setattr(TagCLIP, "_windows_per_batch", lambda self: 8)
    return attempts


def test_out_of_memory_halves_the_windows(bench: Bench) -> None:
    """Halved until it fits, for the rest of the image; the labels are those of single windows."""
    image, predictor = picture(64, 64 + 8 * 48), bench.predictor()
    expected = predictor(image)
    attempts = limit_windows(bench, 2)
    found = predictor(image)
    assert attempts == [8, 4, 2, 2, 2, 2, 1]
    for key in ("sem_seg_scores", "trusty"):
        torch.testing.assert_close(found[key], expected[key], atol=1e-3, rtol=0)
    assert (found["sem_seg_labels"] == expected["sem_seg_labels"]).float().mean() > 0.999
    said = bench.said()
    for count in (8, 4):
        assert f"MODEL.TAGCLIP.TEST.WINDOW_BATCH: found the GPU's memory full with {count} " in said
        assert (
            f"going on with {count // 2}; set MODEL.TAGCLIP.TEST.WINDOW_BATCH {count // 2}" in said
        )


def test_out_of_memory_with_one_window(bench: Bench) -> None:
    attempts = limit_windows(bench, 0)
    line = bench.demo("--input", bench.save_image("a.png"), "--output", bench.root / "out")
    assert attempts == [2, 1] and "\n" not in line
    for part in (
        "ConfigError: MODEL.TAGCLIP.TEST.WINDOW_BATCH: found the GPU's memory full with one window",
        "of 64x64 pixels, expected room for it; lower MODEL.TAGCLIP.TEST.WINDOW",
        "MODEL.DEVICE cpu",
    ):
        assert part in line
    assert not (bench.root / "out").exists()


def test_out_of_memory_merges_on_the_cpu(bench: Bench) -> None:
    """Labels, scores and rankings are computed again from the same logits."""
    predictor, chunks = bench.predictor(), ScoreFusion.chunks
    asked = predictor.asked
    views, size = predictor.encode(picture(), asked), (40, 56)
    calls = (partial(views.labels, size, 0.2, 2), partial(views.scores, size))
    expected = [call() for call in calls]
    failures = []

    def full(self: ScoreFusion, *args: Any) -> Iterator[Tensor]:
        for count, planes in enumerate(chunks(self, *args)):
            # In the middle of the work, once for each call.
            if count == 1 and self is views:
                failures.append(self)
                raise torch.OutOfMemoryError("CUDA out of memory.")
            yield planes

    bench.patch.setattr(ScoreFusion, "chunks", full)
    bench.patch.setattr(ScoreFusion, "classes_per_chunk", lambda self, size: 2)
    for call, result in zip(calls, expected, strict=True):
        found = call()
        assert found.keys() == result.keys()
        assert all(torch.equal(found[key], result[key]) for key in found)
    assert len(failures) == 2
    said = bench.said()
    assert "MODEL.TAGCLIP.TEST.WORKSPACE_MIB: found the GPU's memory full while the scores" in said
    assert "merging on the CPU" in said and "MODEL.TAGCLIP.TEST.OUTPUT labels" in said


def test_out_of_memory_in_training(bench: Bench) -> None:
    """One line with the keys; the checkpoint of before stays."""

    def fill_memory(loop: TrainingLoop) -> None:
        def forward(*args: Any) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory.")

        loop.model.forward = forward

    before_step(bench, 3, fill_memory)
    refused(
        bench.training(*NO_TEST, "SOLVER.CHECKPOINT_PERIOD", 2),
        "ConfigError: SOLVER.IMS_PER_BATCH: found the GPU's memory full in iteration 3 with 2 imag",
        "raise SOLVER.ACCUMULATE (the same batch in more parts), set MODEL.BACKBONE.CHECKPOINT Tr",
        "continue with --resume",
    )
    assert read_checkpoint(bench.output / "model_0000001.pth")["model"]
    assert (bench.output / "last_checkpoint").read_text() == "model_0000001.pth"


def send(number: int) -> Callable[[TrainingLoop], None]:
    """A function that sends this process a signal."""
    return lambda loop: os.kill(os.getpid(), number)


def test_sigterm(bench: Bench) -> None:
    """Saved after the step, exit code 0, and the way to go on is said."""
    before_step(bench, 1, send(signal.SIGTERM))
    assert bench.train(*NO_TEST) == 0
    assert read_checkpoint(bench.output / "model_0000001.pth")["iteration"] == 1
    assert "SIGTERM: saved iteration 1; continue with --resume" in bench.said()
    assert bench.train(*NO_TEST, resume=True) is None
    lines = (bench.output / "metrics.json").read_text().splitlines()
    assert max(json.loads(line)["iteration"] for line in lines) == 3


def test_ctrl_c(bench: Bench) -> None:
    # A shell starts background jobs with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    before_step(bench, 1, send(signal.SIGINT))
    try:
        assert bench.train(*NO_TEST) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert read_checkpoint(bench.output / "model_0000001.pth")["iteration"] == 1


def test_error_in_a_loader_process(bench: Bench) -> None:
    call = bench.training("DATALOADER.NUM_WORKERS", 2)
    image = bench.root / "images" / "train" / "0.png"
    image.unlink()
    (image.parent / "0.png").write_bytes(b"")
    refused(
        call, f"DatasetError: {image}: cannot decode this image (it has 0 bytes)", "replace it, or"
    )
    assert not list(bench.output.glob("*.pth"))


def test_more_processes_than_gpus(bench: Bench) -> None:
    """Found before any process is started or file is written."""
    bench.patch.setattr(torch.cuda, "device_count", lambda: 4)
    found = "ConfigError: --num-gpus: found 4 GPUs on this machine, expected 8; use --num-gpus 4"
    bench.config.write_text(changed(bench.cfg, "MODEL.DEVICE", "cuda").dump())
    before = files_below(bench.root)
    refused(bench.training(num_gpus=8), found)
    assert files_below(bench.root) == before
    image = bench.save_image("a.png")
    line = bench.demo("--input", image, "--output", bench.root / "out", "--num-gpus", 8)
    assert line.startswith(found) and not (bench.root / "out").exists()


def test_no_gpu(bench: Bench) -> None:
    """A config for a GPU trains and draws on the CPU, and says so."""
    bench.patch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench.train(*NO_TEST, "MODEL.DEVICE", "cuda", "SOLVER.MAX_ITER", 1) is None
    assert "Device: cpu (found no GPU)" in bench.said()
    predictor = bench.predictor("MODEL.DEVICE", "cuda")
    assert predictor(np.zeros((9, 9, 3), np.uint8))["sem_seg_labels"].shape == (9, 9)


def test_more_processes_than_gpus_as_a_process(bench: Bench) -> None:
    line = f"--num-gpus: found {torch.cuda.device_count()} GPUs on this machine, expected 99; use"
    refused_as_process(bench.root, ("train_net.py", "--num-gpus", "99"), f"ConfigError: {line}")
    assert not list(bench.root.iterdir())
