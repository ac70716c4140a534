"""MODEL.COMPILE changes no result."""

from __future__ import annotations

import shutil

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from helpers.tiny_run import changed

COMPILER = shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")


def outcome(cfg: CfgNode) -> tuple[dict, dict, torch.Tensor]:
    """Losses, gradients and logits of a model with random weights."""
    torch.manual_seed(0)
    model = build_model(cfg)
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 3, (8, 8), dtype=torch.uint8, generator=generator)
    labels = labels.repeat_interleave(8, 0).repeat_interleave(8, 1)
    with EventStorage():
        losses = model.train()([{"image": image, "sem_seg": labels}])
    sum(losses.values()).backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    with torch.no_grad():
        logits = model.eval().encode({"image": image}, model.vocabulary).views[0].class_logits
    return losses, gradients, logits


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.parametrize("checkpoint", [False, True])
def test_compiled_and_plain_model_agree(tiny_cfg: CfgNode, checkpoint: bool) -> None:
    """Dropout draws other numbers in compiled code, so there is none."""
    plain_cfg = changed(tiny_cfg, "MODEL.CLIP.PROMPT.DROPOUT", 0.0, "MODEL.TAGCLIP.DROPOUT", 0.0)
    plain_cfg = changed(plain_cfg, "MODEL.BACKBONE.CHECKPOINT", checkpoint)
    plain, compiled = outcome(plain_cfg), outcome(changed(plain_cfg, "MODEL.COMPILE", True))
    for name, loss in plain[0].items():
        torch.testing.assert_close(compiled[0][name], loss)
    assert compiled[1].keys() == plain[1].keys()
    for name, gradient in plain[1].items():
        # Some key biases have a gradient of zero, which is rounding noise.
        atol = 1e-4 * float(gradient.abs().max()) + 1e-7
        torch.testing.assert_close(compiled[1][name], gradient, rtol=0, atol=atol)
    torch.testing.assert_close(compiled[2], plain[2], rtol=0, atol=1e-5)


def test_compiling_changes_no_name_of_a_checkpoint(tiny_cfg: CfgNode) -> None:
    compiled = build_model(changed(tiny_cfg, "MODEL.COMPILE", True))
    assert compiled.state_dict().keys() == build_model(tiny_cfg).state_dict().keys()
    assert all(block._compiled_call_impl for block in compiled.backbone.blocks)
    assert compiled.sem_seg_head.loss.focal.compiled
