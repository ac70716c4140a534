"""Groups of training: labels, targets, losses, gradients, and the transductive stage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from golden.models import Workspace
from golden.report import Report
from tagclip.checkpoint.conversion.mmseg import trained_tensors
from tagclip.data import ZeroShotDatasetMapper
from tagclip.modeling.losses.seg_loss import SegTargets, pixel_accuracy
from tagclip.modeling.self_training import best_class

__all__ = ["check_training", "check_transductive"]

# The groups with logits, targets and all gradients; other unsupervised ones have some gradients.
_COMPLETE = ("train", "trans_intended_disc")
_LOSSES = {"loss_mask": "loss_mask", "loss_dice": "loss_dice", "loss_trusty": "loss_disc"}


@dataclass
class Step:
    """One training step of the model, seen from outside.

    Attributes:
        samples: what the mapper gave, with the golden images.
        class_logits: (N, K, h, w).
        trusty_logits: (N, 1, h, w) or None.
        targets: what the loss was computed with.
        losses: as the model returned them.
        gradients: of every trainable parameter, by this library's name.
    """

    samples: list[dict[str, Any]]
    class_logits: Tensor
    trusty_logits: Tensor | None
    targets: SegTargets
    losses: dict[str, Tensor]
    gradients: dict[str, Tensor]


def check_training(space: Workspace, report: Report) -> None:
    """Compare the inductive and supervised steps."""
    model = space.model()
    for prefix, labels in (
        ("train", "label"),
        ("train_one_empty", "label_one_empty"),
        ("train_all_empty", "label_all_empty"),
    ):
        check_step(space, model, prefix, run(space, model, labels), report)
    lookup, _ = lookups(space, model)
    table = space.golden.data.get("train/visibility_map", torch.zeros(0))
    expected = torch.full((len(table),), model.train_vocabulary.ignore_index)
    expected[list(lookup)] = torch.tensor(list(lookup.values()))
    report.equal("train/visibility_map", expected)
    for token in (True, False):
        model = space.model("supervised", token=token)
        prefix = f"train_supervised_{'' if token else 'no'}disc"
        check_step(space, model, prefix, run(space, model, "label"), report)


def check_transductive(space: Workspace, report: Report) -> None:
    """Compare the stage as ZegCLIP has it, with its head and with TagCLIP's."""
    for prefix, options in (
        ("trans_intended_disc", {}),
        ("trans_intended_nodisc", {"token": False}),
        ("trans_zegclip", {"token": False, "zegclip": True, "mask_weight": 100.0}),
    ):
        model = space.model("transductive", **options)
        step = run(space, model, "label")
        check_pseudo_labels(space, model, prefix, step, report)
        check_step(space, model, prefix, step, report)


def mapped(space: Workspace, model: nn.Module, raw: Tensor) -> list[dict[str, Any]]:
    """Send (N, H, W) raw labels through the mapper, without augmentation."""
    setting = {0: "inductive", 1: "transductive"}[model.self_training is not None]
    arguments = ZeroShotDatasetMapper.from_config(
        space.config(DATASETS__ZERO_SHOT__SETTING=setting), is_train=True
    )
    arguments |= {
        "augmentations": [],
        "target_vocabulary": model.train_vocabulary,
        "novel_masks": True,
    }
    mapper, samples = ZeroShotDatasetMapper(**arguments), []
    with TemporaryDirectory() as folder:
        image, label = Path(folder) / "image.png", Path(folder) / "label.png"
        for values in raw.numpy().astype(np.uint8):
            Image.fromarray(values).save(label)
            Image.fromarray(np.stack([values] * 3, axis=2)).save(image)
            sample = {"file_name": str(image), "sem_seg_file_name": str(label)}
            samples.append(mapper(sample))
    return samples


def lookups(space: Workspace, model: nn.Module) -> tuple[dict[int, int], dict[int, bool]]:
    """Raw label -> label of ours, and raw label -> whether it is an unseen class."""
    raw = [*(entry.id for entry in space.vocabulary.classes), space.vocabulary.ignore_label]
    sample = mapped(space, model, torch.tensor([raw])[None])[0]
    labels, novel = sample["sem_seg"][0].tolist(), sample["novel_mask"][0].tolist()
    return dict(zip(raw, labels, strict=True)), dict(zip(raw, novel, strict=True))


def run(space: Workspace, model: nn.Module, labels: str) -> Step:
    """Run one step in training mode; `Workspace.config` has switched dropout off."""
    samples = mapped(space, model, space.golden.input(labels)[:, 0])
    for sample, image in zip(samples, space.golden.input("image"), strict=True):
        sample["image"] = image
    seen: list[tuple[Any, ...]] = []
    hook = model.sem_seg_head.loss.register_forward_hook(lambda _, args, __: seen.append(args))
    model.train()
    model.zero_grad()
    losses = model(samples)
    sum(losses.values()).backward()
    hook.remove()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    class_logits, trusty_logits, targets = seen[0]
    return Step(samples, class_logits, trusty_logits, targets, losses, gradients)


def check_step(space: Workspace, model: nn.Module, prefix: str, step: Step, report: Report) -> None:
    """Compare everything below ``prefix/`` that every kind of training has."""
    loss = model.sem_seg_head.loss
    grid = loss._grid(step.targets, step.class_logits.shape[-2:])
    upsampled = grid.upsample(step.class_logits.detach())
    if prefix in _COMPLETE:
        report.close(f"{prefix}/pred_masks", upsampled)
        report.close(f"{prefix}/pred_disc", grid.upsample(step.trusty_logits.detach()))
        classes = torch.arange(step.class_logits.shape[1]).view(-1, 1, 1)
        report.equal(f"{prefix}/target_masks", step.targets.labels[:, None] == classes)
    report.labels(f"{prefix}/label_used", step.targets.labels, upsampled.sigmoid())
    if step.trusty_logits is not None:
        report.equal(f"{prefix}/target_disc", step.targets.trusty[:, None])
    counts = grid.present(step.class_logits.shape[1])
    report.equal(f"{prefix}/labels_per_image", [row.nonzero().flatten().tolist() for row in counts])
    report.equal(f"{prefix}/num_masks", max(1, int((counts > 0).sum())))
    weights = {
        "loss_mask": loss.mask_weight,
        "loss_dice": loss.dice_weight,
        "loss_trusty": loss.trusty_weight,
    }
    for ours, theirs in _LOSSES.items():
        if ours in step.losses:
            report.loss(f"{prefix}/unweighted/{theirs}", step.losses[ours] / weights[ours])
            report.loss(f"{prefix}/weighted/decode.{theirs}", step.losses[ours])
    # At full resolution every pixel is a patch centre.
    accuracy, labelled = (
        pixel_accuracy(upsampled, step.targets)[0],
        int(counts.sum()) or grid.labels.numel(),
    )
    report.accuracy(f"{prefix}/weighted/decode.acc_seg", accuracy, labelled)
    report.loss(f"{prefix}/total_loss", sum(step.losses.values()))
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert step.gradients.keys() == trainable, "a trainable parameter of ours gets no gradient"
    if "supervised" not in prefix:
        check_gradients(space, prefix, step, report)


def check_gradients(space: Workspace, prefix: str, step: Step, report: Report) -> None:
    """Compare all gradients in the file, and which official parameters get none."""
    golden = space.golden
    conversion = space.zegclip if prefix == "trans_zegclip" else space.official
    theirs = golden.tree(f"{prefix}/grad")
    converted, sources = trained_tensors(theirs, conversion.layers)
    unknown = theirs.keys() - {name for names in sources.values() for name in names}
    assert not unknown, f"{prefix}/grad: nothing of ours has these names: {sorted(unknown)}"
    for name, gradient in converted.items():
        keys = [f"{prefix}/grad/{source}" for source in sources[name]]
        # Softmax removes what moves all keys alike; the last layer has none.
        is_zero = name.endswith(".key.bias") and ".logits." not in name
        report.gradient(keys, step.gradients[name], gradient, is_zero)
    expected = step.gradients.keys() if prefix in _COMPLETE else {"backbone.prompts.tokens"}
    for name in sorted(expected - converted.keys()):
        for source in conversion.sources[name]:
            report.missing(f"{prefix}/grad/{source}")
    key = f"{prefix}/grad_none"
    report.equal(key, ordered(golden.data.get(key, []), conversion.dropped))


def ordered(theirs: list[str], dropped: dict[str, str]) -> list[str]:
    """The names that the converter drops as unread, in the file's order where it has them."""
    unread = [name for name, why in dropped.items() if "no forward pass" in why]
    return [name for name in theirs if name in unread] + [n for n in unread if n not in theirs]


def check_pseudo_labels(
    space: Workspace, model: nn.Module, prefix: str, step: Step, report: Report
) -> None:
    """Compare what the stage starts from and what it fills in."""
    novel = torch.stack([sample["novel_mask"] for sample in step.samples])
    labels = torch.stack([sample["sem_seg"] for sample in step.samples]).long()
    report.equal(f"{prefix}/label_before", labels.masked_fill(novel, -1))
    unseen = torch.from_numpy(~space.vocabulary.seen_mask).nonzero().flatten()
    size, logits = labels.shape[-2:], step.class_logits.detach()
    best = [best_class(image[unseen], size, lambda s, _: s, 256)[0] for image in logits]
    grid = model.sem_seg_head.loss._grid(step.targets, logits.shape[-2:])
    scores = grid.upsample(logits).sigmoid()
    report.labels(f"{prefix}/pseudo_label", unseen[torch.stack(best)], scores)
    lookup, is_novel = lookups(space, model)
    # Values that are no class: refused by our mapper, unseen for the official table, but for
    # 200, its mark of padding that nothing writes.
    table = torch.full((256,), -1)
    table[200] = 200
    for raw, label in lookup.items():
        table[raw] = -1 if is_novel[raw] else label
    report.equal(f"{prefix}/visibility_map", table)
