"""The benchmarks: each takes a workload and says what it found."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from torch import nn

from tagclip.data.image_io import read_image
from tagclip.data.inference_input import InferenceInput
from tagclip.data.label_io import read_label
from tagclip.data.protocol import Protocol
from tagclip.evaluation.evaluator import ZeroShotSemSegEvaluator
from tagclip.modeling.clip.text_bank import TextBank
from tagclip.projects.benchmark import memory
from tagclip.projects.benchmark.bulk import bulk
from tagclip.projects.benchmark.drawing import drawing
from tagclip.projects.benchmark.findings import Findings
from tagclip.projects.benchmark.fusion import fusion
from tagclip.projects.benchmark.fusion_kernel import kernel
from tagclip.projects.benchmark.int8 import int8
from tagclip.projects.benchmark.labels import labels
from tagclip.projects.benchmark.loading import loading
from tagclip.projects.benchmark.measure import (
    Stopwatch,
    Timing,
    alternate,
    memory_growth,
    seconds,
)
from tagclip.projects.benchmark.precision import precision
from tagclip.projects.benchmark.relative import relative
from tagclip.projects.benchmark.released import released_confusion, released_labels
from tagclip.projects.benchmark.startup import startup
from tagclip.projects.benchmark.workload import Workload, rectangles
from tagclip.utils.files import temporary_folder

__all__ = ["BENCHMARKS"]

# Prompts of the released way, one text forward of full length each, that are timed.
_SAMPLE = 8
_RELEASED = "released sequence of operations"
_RELEASED_STEP = "step with the released losses"


def vit(workload: Workload, runs: int) -> Findings:
    """Forward pass of `CLIPViT`, and of open_clip's tower on the same number of tokens."""
    backbone, image = workload.model.eval().backbone, workload.window()
    tower, other = _open_clip_tower(workload)
    functions = {
        "CLIPViT": torch.no_grad()(partial(backbone, image)),
        "open_clip": torch.no_grad()(partial(tower, other)),
    }
    times, found = alternate(functions, 2 * runs, workload.device), Findings("ViT")
    for name, timing in times.items():
        found.add(f"{name}, {len(tower.positional_embedding)} tokens", timing)
    ratio = found.add("CLIPViT over open_clip", times["CLIPViT"].over(times["open_clip"]), "x")
    _add_memory(found, workload, "CLIPViT", memory.vit)
    found.add_bar("CLIPViT over open_clip's tower", ratio, "x", limit=1.03)
    return found


def _open_clip_tower(workload: Workload) -> tuple[nn.Module, torch.Tensor]:
    """A tower of the same sizes, and an image of as many patches as there are tokens here."""
    from open_clip.transformer import QuickGELU, VisionTransformer

    backbone, device = workload.model.backbone, workload.model.device
    patch, width = backbone.patch_size, backbone.patch_embed.out_channels
    patches = (workload.scale.crop // patch) ** 2 + workload.scale.prompts
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
    return tower.eval().to(device), torch.randn(1, 3, *size).to(device)


def inference(workload: Workload, runs: int) -> Findings:
    """From a file to labels, by stage, and the released sequence of operations."""
    model, scale, watch = workload.model.eval(), workload.scale, Stopwatch(workload.device)
    item, window = workload.item(), workload.window()
    height, width = item["image"].shape[-2:]
    grid = model.inference_settings.grid(height, width)

    def bare() -> None:
        for _ in range(len(grid)):
            model.backbone(window)

    methods = ((model.backbone, "forward", "ViT"), (model.sem_seg_head, "forward", "head"))
    rest = "windows, upsampling, gate, fusion, argmax"
    functions = {
        "bare": torch.no_grad()(bare),
        "lean": partial(_watched, watch, methods, partial(model, [item]), rest),
        "released": partial(released_labels, model, item["image"], scale.photo),
    }
    times, found = alternate(functions, runs, workload.device), Findings("inference")
    prepare, load = InferenceInput.from_config(workload.cfg), partial(read_image, workload.image)
    stages = {"load (JPEG)": load, "preprocess (resize)": partial(prepare, load())}
    for name, stage in stages.items():
        found.add(name, Timing(tuple(seconds(stage) for _ in range(runs))))
    for name, timing in watch.timings().items():
        found.add(name, timing)
    found.add("the whole model", times["lean"])
    found.add(f"{len(grid)} bare ViT forwards", times["bare"])
    found.add(_RELEASED, times["released"])
    ratio = found.add("model over bare ViT", times["lean"].over(times["bare"]), "x")
    found.add("released over bare ViT", times["released"].over(times["bare"]), "x")
    found.add("share of the ViT", 100 * times["bare"].median / times["lean"].median, "%")
    peak = _add_memory(found, workload, "the whole model", memory.labels)
    _add_memory(found, workload, _RELEASED, memory.released)
    what = f"{height}x{width} image, {len(grid)} windows, {scale.classes} classes"
    found.add_bar(f"{what}: time over bare ViT", ratio, "x", 1.05, 1.03, "1.47-1.52")
    found.add_bar(f"{what}: memory above the model", peak, "MiB", 300, released="1170")
    return found


def training(workload: Workload, runs: int) -> Findings:
    """A training step without optimizer, by stage, and with the released losses."""
    model, watch = workload.model.train(), Stopwatch(workload.device)
    methods = (
        (model.backbone, "forward", "ViT, forward"),
        (model.sem_seg_head, "layers", "head, forward"),
        (model.sem_seg_head, "losses", "losses, with their gradient"),
        (torch.Tensor, "backward", "backward"),
    )
    step = partial(workload.training_step, workload.training_batch())
    functions = {
        "bare": memory.vit_step(workload),
        "lean": partial(_watched, watch, methods, step, "images, targets, pixel accuracy"),
        "released": memory.released_step(workload),
    }
    times, found = alternate(functions, runs, workload.device), Findings("training")
    for name, timing in watch.timings().items():
        found.add(name, timing)
    found.add("the whole step", times["lean"])
    found.add("ViT forward and backward alone", times["bare"])
    found.add(_RELEASED_STEP, times["released"])
    ratio = found.add("step over bare ViT", times["lean"].over(times["bare"]), "x")
    found.add("released over bare ViT", times["released"].over(times["bare"]), "x")
    peak = _add_memory(found, workload, "the whole step", memory.step)
    checkpoint = _add_memory(
        found, workload, "the same, CHECKPOINT", memory.step, "MODEL.BACKBONE.CHECKPOINT", True
    )
    _add_memory(found, workload, "ViT alone", memory.vit_step)
    _add_memory(found, workload, _RELEASED_STEP, memory.released_step)
    what = f"training step, 1 image, {workload.scale.seen} classes"
    found.add_bar(f"{what}: time over bare ViT", ratio, "x", 1.20, 1.12, "about 1.8")
    found.add_bar(f"{what}: memory above the model", peak, "MiB", 1100, released="3020")
    found.add_bar(f"{what}, CHECKPOINT: memory", checkpoint, "MiB", 450)
    return found


def _watched(
    watch: Stopwatch,
    methods: tuple[tuple[Any, str, str], ...],
    function: Callable[[], Any],
    rest: str,
) -> None:
    """Run with the time split among methods, see `Stopwatch`."""
    with ExitStack() as stack:
        for owner, method, stage in methods:
            stack.enter_context(watch.watch(owner, method, stage))
        watch.run(function, rest)


def large(workload: Workload, runs: int) -> Findings:
    """A photo of many pixels, many classes."""
    scale, model, found = workload.scale, workload.model.eval(), Findings("large")
    name = "{1}x{0} image, {2} classes".format(*scale.large_photo, scale.large_classes)
    found.add(name, seconds(partial(model, [workload.large_item()]), workload.device))
    peak = _add_memory(found, workload, name, memory.large)
    what = f"{name}: memory above the model"
    found.add_bar(what, peak, "MiB", 1536, released="does not fit")
    return found


def throughput(workload: Workload, runs: int) -> Findings:
    """Images per second and peak memory, in both precisions on a GPU."""
    batches, steps, dtypes = (1,), (), (torch.float32,)
    if workload.device != "cpu":
        batches, steps, dtypes = (1, 8), (2, 4, 8), (torch.float32, torch.bfloat16)
    found = Findings("throughput")
    for dtype in dtypes:
        name = str(dtype).removeprefix("torch.")
        workload.model.backbone.inference_dtype = dtype
        for images in batches:
            run = partial(workload.model.eval(), [workload.item()] * images)
            _add_rates(found, workload, f"{name}, batch {images}", run, images, runs)
        autocast = torch.autocast(workload.device, dtype, dtype != torch.float32)
        for images in steps:
            run = autocast(partial(workload.training_step, workload.training_batch(images)))
            _add_rates(found, workload, f"{name}, training step, batch {images}", run, images, runs)
    workload.model.backbone.inference_dtype = torch.float32
    return found


def _add_rates(
    found: Findings,
    workload: Workload,
    name: str,
    run: Callable[[], None],
    images: int,
    runs: int,
) -> None:
    timing = alternate({"": run}, runs, workload.device)[""]
    found.add(name, timing)
    found.add(name, Timing(tuple(images / spent for spent in timing.runs)), "images/s")
    if workload.device != "cpu":
        found.add(name, memory_growth(run, workload.device), "MiB")


def _add_memory(
    found: Findings, workload: Workload, name: str, prepare: memory.Prepare, *options: Any
) -> float:
    peak = memory.peak_memory(workload.scale, workload.device, prepare, *options)
    return found.add(name, peak, "MiB")


def text(workload: Workload, runs: int) -> Findings:
    """Class vectors: encoded, read from the cache, and one uncut prompt at a time."""
    vocabulary = workload.vocabulary(workload.scale.classes)
    with temporary_folder() as folder:
        cfg = workload.cfg.clone()
        cfg.merge_from_list(["MODEL.CLIP.TEXT_CACHE", str(folder)])
        first, second = (TextBank(cfg).to(workload.device) for _ in range(2))
        # Built before the clock starts.
        tower = first.source.text_tower().to(workload.device)
        encoded = seconds(partial(first, vocabulary), workload.device)
        cached = seconds(partial(second, vocabulary), workload.device)
        if not torch.equal(first(vocabulary), second(vocabulary)):
            raise RuntimeError("the text cache gave back other vectors")
    prompts = len(first.templates) * len(vocabulary.prompts)
    ids = torch.zeros(1, first.source.context_length, dtype=torch.long, device=workload.device)
    one = torch.no_grad()(partial(tower, ids))
    uncut = alternate({"one": one}, _SAMPLE, workload.device)["one"].median * prompts
    name, found = f"{prompts} prompts", Findings("text")
    found.add(f"{name}, first time", encoded, "s")
    found.add(f"{name}, second time, from the cache", cached)
    found.add(f"{name}, uncut, one by one (from {_SAMPLE})", uncut, "s")
    found.add("text forwards, first time", first.num_text_forwards, "count")
    again = found.add("text forwards, second time", second.num_text_forwards, "count")
    what = f"text forwards of {name}, second time"
    found.add_bar(what, again, "count", 0, released="every run")
    return found


def evaluator(workload: Workload, runs: int) -> Findings:
    """One image in the evaluator; what it holds after one image and after many."""
    vocabulary = Protocol(workload.cfg).asked(workload.dataset)
    height, width = workload.scale.photo
    # Rectangles of 12 classes, as many as an image may well show.
    truth = torch.from_numpy(rectangles(len(vocabulary), (height, width))).long()
    scores = torch.full((len(vocabulary), height, width), 0.1)
    scores.scatter_(0, truth.clamp(max=len(vocabulary) - 1)[None], 0.9)
    output = {"sem_seg_labels": scores.argmax(dim=0).to(torch.int16), "trusty": scores[0].half()}
    sample = DatasetCatalog.get(workload.dataset)[0]
    measured = ZeroShotSemSegEvaluator(workload.dataset, vocabulary=vocabulary, distributed=False)
    process = partial(measured.process, [sample], [output])
    process()
    held = _held_bytes(measured)
    times = alternate(
        {
            "lean": process,
            "released": lambda: released_confusion(scores, read_label(sample["sem_seg_file_name"])),
        },
        10 * runs,
    )
    grown = _held_bytes(measured) - held
    images = 10 * runs + 2
    name, found = f"{len(vocabulary)} classes, {width}x{height}", Findings("evaluator")
    lean = found.add(f"{name}, labels", times["lean"])
    found.add(f"{name}, released: scores on the CPU, RLE", times["released"])
    found.add(f"bytes held more after {images} images", grown, "count")
    found.add_bar(f"evaluator, {name}", lean, "ms", 5, released="RLE and scores")
    found.add_bar("evaluator, growth with images", grown, "count", 0, released="14-20 kB each")
    return found


def _held_bytes(owner: Any) -> int:
    """Bytes of an object's arrays, and its other attributes counted by their length."""
    total = 0
    for value in vars(owner).values():
        if isinstance(value, np.ndarray):
            total += value.nbytes
        elif isinstance(value, (list, dict)):
            total += len(value)
    return total


# In the order of the report.
BENCHMARKS: dict[str, Callable[[Workload, int], Findings]] = {
    "vit": vit,
    "inference": inference,
    "training": training,
    "text": text,
    "evaluator": evaluator,
    "large": large,
    "labels": labels,
    "kernel": kernel,
    "fusion": fusion,
    "relative": relative,
    "precision": precision,
    "int8": int8,
    "drawing": drawing,
    "startup": startup,
    "bulk": bulk,
    "loading": loading,
    "throughput": throughput,
}
