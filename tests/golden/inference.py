"""Groups of scores: gate modes, seen bias, sliding window, argmax."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from golden.models import Workspace
from golden.report import Report
from tagclip.modeling.inference.fusion import ScoreFusion, upsample_window
from tagclip.modeling.inference.gate import Gate

__all__ = ["check_scores", "check_sliding_window"]

_MODES = {"False": "none", "True": "both", "seen": "seen", "unseen": "unseen"}
_BIASES = {"st_False": 0.1, "st_True": 0.0}


@torch.no_grad()
def check_scores(space: Workspace, model: nn.Module, report: Report) -> None:
    """Compare full-resolution logits and the scores of every gate mode and bias."""
    golden = space.golden
    fusions = encode(space, model)
    upsampled = [
        torch.cat([upsample_window(view, logits[0]) for logits in both])
        for fusion in fusions
        for view in fusion.views
        for both in [(view.class_logits, view.trusty_logits)]
    ]
    report.close("eval/mask_logits_fullres", torch.stack(upsampled))
    for official, mode in _MODES.items():
        for name in _BIASES:
            key = f"eval/sem/disc_{official}/{name}"
            report.close(key, torch.stack([scores(f, mode, name) for f in fusions]))
    for prefix, zegclip in (("eval_nodisc", False), ("zegclip_eval", True)):
        fusions = encode(space, space.model(token=False, zegclip=zegclip))
        for name in _BIASES:
            report.close(
                f"{prefix}/sem/{name}", torch.stack([scores(f, "none", name) for f in fusions])
            )
    assert all(len(f.views[0].grid) == 1 for f in fusions), golden.config("crop")


def encode(space: Workspace, model: nn.Module) -> list[ScoreFusion]:
    """Run the model on every image of the batch."""
    return [
        model.encode({"image": image}, space.vocabulary) for image in space.golden.input("image")
    ]


def with_gate(fusion: ScoreFusion, mode: str, bias: str) -> ScoreFusion:
    """The same logits under another gate."""
    return replace(fusion, gate=Gate(mode, bias=_BIASES[bias]))


def scores(fusion: ScoreFusion, mode: str, bias: str) -> torch.Tensor:
    """(K, H, W) scores at the size of the image."""
    size = (fusion.views[0].grid.height, fusion.views[0].grid.width)
    return with_gate(fusion, mode, bias).scores(size)["sem_seg"]


@torch.no_grad()
def check_sliding_window(space: Workspace, model: nn.Module, report: Report) -> None:
    """Compare windows, averaged scores, their resize to the original size, and labels."""
    golden = space.golden
    fusion = model.encode({"image": golden.input("slide_image")[0]}, space.vocabulary)
    grid = fusion.views[0].grid
    windows = [[y.start, y.stop, x.start, x.stop] for y, x in grid]
    report.equal("slide/windows_y1y2x1x2", windows)
    size = tuple(golden.config("ori_shape"))
    required = [
        f"slide/disc_{gate}/scores" for gate in ("False/st_False", "False/st_True", "True/st_False")
    ]
    for key in golden.keys(r"slide/disc_\w+/st_\w+/scores", *required):
        _, official, bias, _ = key.split("/")
        gated = with_gate(fusion, _MODES[official.removeprefix("disc_")], bias)
        report.close(key, gated.scores((grid.height, grid.width))["sem_seg"])
        resized = gated.scores(size)["sem_seg"]
        report.close(f"{key}_resized", resized)
        labels = gated.labels(size)["sem_seg_labels"]
        report.labels(key.replace("scores", "argmax"), labels, resized)
