"""MODEL.COMPILE changes no result."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from helpers.tiny_run import changed

# Where a machine has no C++ compiler, or none of the name that is asked for.
HIDDEN = {
    "no compiler": {"PATH": "", "CXX": ""},
    "not there": {"CXX": "/nonexistent/g++"},
}
BUILD = """
import sys
from detectron2.modeling import build_model
from tagclip import load_config
from tagclip.utils.cli import run_tool
run_tool(lambda: build_model(load_config(sys.argv[1])))
"""
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


@pytest.mark.skipif(COMPILER is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiling_changes_no_name_of_a_checkpoint(tiny_cfg: CfgNode) -> None:
    compiled = build_model(changed(tiny_cfg, "MODEL.COMPILE", True))
    assert compiled.state_dict().keys() == build_model(tiny_cfg).state_dict().keys()
    assert all(block._compiled_call_impl for block in compiled.backbone.blocks)
    assert compiled.sem_seg_head.loss.focal.compiled


@pytest.mark.parametrize("machine", HIDDEN)
def test_a_machine_without_a_compiler_is_named_at_the_start(
    tiny_cfg: CfgNode, machine: str, tmp_path: Path
) -> None:
    """In a process of its own: torch remembers the compiler that it has found."""
    environment = (
        os.environ | HIDDEN[machine] | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    )
    environment = {name: value for name, value in environment.items() if value or name == "PATH"}
    config = tmp_path / "config.yaml"
    config.write_text(changed(tiny_cfg, "MODEL.COMPILE", True).dump())
    said = subprocess.run(
        [sys.executable, "-c", BUILD, str(config)],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    # torch may say before that there is no GPU.
    line = said.stderr.splitlines()[-1]
    assert said.returncode == 1 and "Traceback" not in said.stdout + said.stderr
    assert line.startswith("ConfigError: MODEL.COMPILE: found True, but torch.compile cannot be")
    assert line.endswith("install a C++ compiler such as g++ (CXX names another one), or set "
                         "MODEL.COMPILE False")  # fmt: skip
