"""The parts of a benchmark: each takes a subject and returns rows and bars."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn

from tagclip.data.inference_input import InferenceInput
from tagclip.data.label_io import read_image
from tagclip.projects.benchmark.data_parts import evaluator, text
from tagclip.projects.benchmark.measure import (
    Stopwatch,
    Timing,
    alternate,
    memory_growth,
    seconds,
)
from tagclip.projects.benchmark.memory import MEASURED, peak_memory, vit_step
from tagclip.projects.benchmark.naive import naive_labels
from tagclip.projects.benchmark.result import Bar, Result, Row
from tagclip.projects.benchmark.subject import Subject

__all__ = ["PARTS"]


def vit(subject: Subject, runs: int) -> Result:
    """Forward pass of `CLIPViT`, and of open_clip's tower on the same number of tokens."""
    backbone, image = subject.model.eval().backbone, subject.window()
    tower, other = _open_clip_tower(subject)
    functions = {
        "CLIPViT": torch.no_grad()(partial(backbone, image)),
        "open_clip": torch.no_grad()(partial(tower, other)),
    }
    times = alternate(functions, 2 * runs, subject.device)
    ratio = times["CLIPViT"].over(times["open_clip"])
    tokens = len(tower.positional_embedding)
    rows = [Row.timed("ViT", f"{name}, {tokens} tokens", timing) for name, timing in times.items()]
    rows += [
        Row.single("ViT", "CLIPViT over open_clip", ratio, "x"),
        _memory(subject, "ViT", "CLIPViT", "vit"),
    ]
    return Result(rows, [Bar("CLIPViT over open_clip's tower", "-", 1.03, None, ratio, "x")])


def _open_clip_tower(subject: Subject) -> tuple[nn.Module, torch.Tensor]:
    """A tower of the same sizes, and an image of as many patches as there are tokens here."""
    from open_clip.transformer import QuickGELU, VisionTransformer

    backbone = subject.model.backbone
    patch, width = backbone.patch_size, backbone.ln_post.normalized_shape[0]
    patches = (subject.scale.crop // patch) ** 2 + subject.scale.prompts
    rows = max(n for n in range(1, math.isqrt(patches) + 1) if patches % n == 0)
    size = (rows * patch, patches // rows * patch)
    block = backbone.blocks[0]
    tower = VisionTransformer(
        image_size=size,
        patch_size=patch,
        width=width,
        layers=len(backbone.blocks),
        heads=block.attn.heads,
        mlp_ratio=block.mlp.fc1.out_features / width,
        output_dim=backbone.embed_dim,
        act_layer=QuickGELU,
    )
    return tower.eval().to(subject.model.device), torch.randn(1, 3, *size).to(subject.model.device)


def inference(subject: Subject, runs: int) -> Result:
    """From a file to labels, by stage, and the released sequence of operations."""
    model, scale, watch = subject.model.eval(), subject.scale, Stopwatch(subject.device)
    item, window = subject.item(), subject.window()
    grid = model.inference_settings.grid(*item["image"].shape[-2:])

    def bare() -> None:
        for _ in range(len(grid)):
            model.backbone(window)

    functions = {
        "bare": torch.no_grad()(bare),
        "lean": partial(_watched_inference, watch, model, item),
        "naive": partial(naive_labels, model, item["image"], scale.photo),
    }
    times = alternate(functions, runs, subject.device)
    rows = _reading_stages(subject, runs)
    rows += [Row.timed("inference", name, found) for name, found in watch.timings().items()]
    total, ratio = times["lean"].median, times["lean"].over(times["bare"])
    share = 100 * times["bare"].median / total
    memory = _memory(subject, "inference", "the whole model", "labels")
    rows += [
        Row.timed("inference", "the whole model", times["lean"]),
        Row.timed("inference", f"{len(grid)} bare ViT forwards", times["bare"]),
        Row.timed("inference", "released sequence of operations", times["naive"]),
        Row.single("inference", "model over bare ViT", ratio, "x"),
        Row.single("inference", "released over bare ViT", times["naive"].over(times["bare"]), "x"),
        Row.single("inference", "share of the ViT", share, "%"),
        memory,
        _memory(subject, "inference", "released sequence of operations", "naive"),
    ]
    height, width = item["image"].shape[-2:]
    what = f"{height}x{width} image, {len(grid)} windows, {scale.classes} classes"
    bars = [
        Bar(f"{what}: time over bare ViT", "1.47-1.52", 1.15, 1.10, ratio, "x"),
        Bar(f"{what}: memory above the model", "1170", 300, None, memory.value, "MiB"),
    ]
    return Result(rows, bars)


def _watched_inference(watch: Stopwatch, model: nn.Module, item: dict[str, Any]) -> None:
    with (
        watch.watch(model.backbone, "forward", "ViT"),
        watch.watch(model.sem_seg_head, "forward", "head"),
    ):
        watch.run(partial(model, [item]), "windows, upsampling, gate, fusion, argmax")


def _reading_stages(subject: Subject, runs: int) -> list[Row]:
    """Decoding of the file, resize."""
    prepare = InferenceInput.from_config(subject.cfg)
    load = partial(read_image, subject.image_file)
    pixels = load()
    times = {
        "load (JPEG)": [seconds(load) for _ in range(runs)],
        "preprocess (resize)": [seconds(partial(prepare, pixels)) for _ in range(runs)],
    }
    return [Row.timed("inference", name, Timing(tuple(found))) for name, found in times.items()]


def training(subject: Subject, runs: int) -> Result:
    """A training step without optimizer, by stage, and with the released losses."""
    model, watch = subject.model.train(), Stopwatch(subject.device)
    batch = subject.training_batch()

    def lean() -> None:
        with ExitStack() as stack:
            for owner, method, stage in (
                (model.backbone, "forward", "ViT, forward"),
                (model.sem_seg_head, "layers", "head, forward"),
                (model.sem_seg_head, "losses", "losses, with their gradient"),
                (torch.Tensor, "backward", "backward"),
            ):
                stack.enter_context(watch.watch(owner, method, stage))
            watch.run(partial(subject.training_step, batch), "images, targets, pixel accuracy")

    naive = MEASURED["naive_step"](subject)
    functions = {"bare": vit_step(subject), "lean": lean, "naive": naive}
    times = alternate(functions, runs, subject.device)
    rows = [Row.timed("training", name, found) for name, found in watch.timings().items()]
    ratio = times["lean"].over(times["bare"])
    memory = _memory(subject, "training", "the whole step", "step")
    checkpoint = _memory(
        subject, "training", "the same, CHECKPOINT", "step", "MODEL.BACKBONE.CHECKPOINT", True
    )
    rows += [
        Row.timed("training", "the whole step", times["lean"]),
        Row.timed("training", "ViT forward and backward alone", times["bare"]),
        Row.timed("training", "step with the released losses", times["naive"]),
        Row.single("training", "step over bare ViT", ratio, "x"),
        Row.single("training", "released over bare ViT", times["naive"].over(times["bare"]), "x"),
        memory,
        checkpoint,
        _memory(subject, "training", "ViT alone", "bare_step"),
        _memory(subject, "training", "step with the released losses", "naive_step"),
    ]
    what = f"training step, 1 image, {subject.scale.seen} classes"
    bars = [
        Bar(f"{what}: time over bare ViT", "about 1.8", 1.20, 1.12, ratio, "x"),
        Bar(f"{what}: memory above the model", "3020", 1100, None, memory.value, "MiB"),
        Bar(f"{what}, CHECKPOINT: memory", "-", 450, None, checkpoint.value, "MiB"),
    ]
    return Result(rows, bars)


def large(subject: Subject, runs: int) -> Result:
    """A photo of many pixels, many classes."""
    scale, model = subject.scale, subject.model.eval()
    item = subject.large_item()
    time = Timing((seconds(partial(model, [item]), subject.device),))
    name = "{1}x{0} image, {2} classes".format(*scale.large_photo, scale.large_classes)
    memory = _memory(subject, "large", name, "large")
    bar = Bar(f"{name}: memory above the model", "does not fit", 1536, None, memory.value, "MiB")
    return Result([Row.timed("large", name, time), memory], [bar])


def throughput(subject: Subject, runs: int) -> Result:
    """Images per second and peak memory, in both precisions on a GPU."""
    batches, dtypes = (1,), (torch.float32,)
    if subject.device != "cpu":
        batches, dtypes = (1, 8), (torch.float32, torch.bfloat16)
    rows = []
    for dtype in dtypes:
        autocast = partial(torch.autocast, subject.device, dtype, dtype != torch.float32)
        name = str(dtype).removeprefix("torch.")
        for images in batches:
            run = partial(_segment, subject, autocast, [subject.item()] * images)
            rows += _rates(subject, f"{name}, batch {images}", run, images, runs)
        for images in [2 * n for n in (1, 2, 4) if subject.device != "cpu"]:
            run = partial(_train, subject, autocast, subject.training_batch(images))
            rows += _rates(subject, f"{name}, training step, batch {images}", run, images, runs)
    return Result(rows)


def _segment(subject: Subject, autocast: Callable, items: list[dict[str, Any]]) -> None:
    with autocast():
        subject.model.eval()(items)


def _train(subject: Subject, autocast: Callable, batch: list[dict[str, Any]]) -> None:
    with autocast():
        subject.training_step(batch)


def _rates(
    subject: Subject, name: str, run: Callable[[], None], images: int, runs: int
) -> list[Row]:
    found = alternate({"": run}, runs, subject.device)[""]
    rates = Timing(tuple(images / spent for spent in found.runs))
    rows = [
        Row.timed("throughput", name, found),
        Row.timed("throughput", name, rates, "images/s"),
    ]
    if subject.device != "cpu":
        memory = memory_growth(run, subject.device)
        rows.append(Row.single("throughput", name, memory, "MiB"))
    return rows


def _memory(subject: Subject, part: str, name: str, measured: str, *options: Any) -> Row:
    found = peak_memory(subject.scale, subject.device, measured, *options)
    return Row.single(part, name, found, "MiB")


# In the order of the report.
PARTS: dict[str, Callable[[Subject, int], Result]] = {
    "vit": vit,
    "inference": inference,
    "training": training,
    "text": text,
    "evaluator": evaluator,
    "large": large,
    "throughput": throughput,
}
