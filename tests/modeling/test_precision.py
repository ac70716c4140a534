"""TEST.DTYPE and SOLVER.AMP.DTYPE: what a device can, and what CLIP's blocks compute in."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from tagclip.errors import ConfigError
from tagclip.modeling.backbone import CLIPViT
from tagclip.modeling.backbone.vit_block import Attention
from tagclip.modeling.precision import (
    check_training_precision,
    has_instructions,
    inference_dtype,
)

HALF = torch.bfloat16


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def has(*names: str) -> None:
        found = dict.fromkeys(("avx512_bf16", "amx_fp16", "avx2", "cpu_name"), False)
        found |= {"cpu_name": "bf16 fp16"} | dict.fromkeys(names, True)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)

    return has


def build(dtype: torch.dtype = HALF, seed: int = 0) -> CLIPViT:
    torch.manual_seed(seed)
    sizes = {"width": 64, "layers": 3, "heads": 4, "hidden": 128, "patch_size": 8}
    return CLIPViT(
        **sizes, grid_size=(4, 4), embed_dim=32, quick_gelu=True, inference_dtype=dtype
    ).eval()


@pytest.mark.parametrize(
    ("names", "bfloat16", "float16"),
    [((), False, False), (("avx512_bf16",), True, False), (("amx_fp16",), False, True)],
)
def test_instructions_of_a_cpu(
    cpu: Callable[..., None], names: tuple, bfloat16: bool, float16: bool
) -> None:
    cpu(*names)
    assert has_instructions("cpu", torch.bfloat16) is bfloat16
    assert has_instructions("cpu", torch.float16) is float16


def test_auto_takes_bfloat16_where_there_are_instructions_and_says_so(
    cpu: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    cpu()
    assert inference_dtype("auto", "cpu") is torch.float32
    assert "TEST.DTYPE auto: float32 on cpu" in caplog.messages
    cpu("avx512_bf16")
    assert inference_dtype("auto", "cpu") is torch.bfloat16
    assert "TEST.DTYPE auto: bfloat16 on cpu" in caplog.messages


def test_what_is_asked_without_instructions(
    cpu: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    cpu()
    assert inference_dtype("bfloat16", "cpu") is torch.bfloat16
    assert "float32 is quicker" in caplog.text
    with pytest.raises(ConfigError, match=r"^TEST.DTYPE: found float16 on a CPU .* float32 or"):
        inference_dtype("float16", "cpu")
    check_training_precision(False, "float16", "cpu")
    with pytest.raises(ConfigError, match=r"^SOLVER.AMP.DTYPE: found float16 on a CPU"):
        check_training_precision(True, "float16", "cpu")
    with pytest.raises(ConfigError, match=r"TEST.DTYPE: found 'half', expected"):
        inference_dtype("half", "cpu")


def test_matrices_are_in_the_type_and_everything_else_in_float32() -> None:
    model = build()
    types: dict[str, set] = {}

    def note(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        types.setdefault(type(module).__name__, set()).update({inputs[0].dtype, output.dtype})

    for module in (*model.modules(), *(m for b in model.active_blocks() for m in b.modules())):
        if not isinstance(module, CLIPViT):
            module.register_forward_hook(note)
    features = model(torch.randn(2, 3, 32, 40))
    assert types["Linear"] == {HALF} and types["QuickGELU"] == {HALF}
    assert types["LayerNorm"] == types["Block"] == types["Conv2d"] == {torch.float32}
    for vectors in features.values():
        assert vectors.dtype == torch.float32
        norms = vectors.norm(dim=1)
        torch.testing.assert_close(norms, torch.ones_like(norms), atol=1e-6, rtol=0)


def test_vectors_are_near_those_of_float32() -> None:
    images = torch.randn(2, 3, 32, 40)
    with torch.no_grad():
        exact, half = build(torch.float32)(images), build()(images)
    for name, vectors in exact.items():
        cosine = (vectors * half[name]).sum(dim=1)
        assert cosine.min() > 0.999 and not torch.equal(vectors, half[name])


def test_weights_are_converted_once_and_after_they_change() -> None:
    model, other = build(), build(seed=1)
    first = model.active_blocks()
    assert model.active_blocks() is first
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert not any("convert" in name for name in model.state_dict())
    model.load_state_dict(other.state_dict())
    again = model.active_blocks()
    assert again is not first
    expected = other.blocks[0].mlp.fc1.weight.to(HALF)
    assert torch.equal(again[0].mlp.fc1.weight, expected)


def test_training_and_float32_use_the_blocks_themselves() -> None:
    assert build().train().active_blocks()[0].matrix_dtype is None
    model = build(torch.float32)
    assert model.active_blocks() is model.blocks and model.for_inference() is model


def test_for_inference_computes_the_same_with_blocks_of_its_own() -> None:
    model, images = build(), torch.randn(1, 3, 32, 32)
    own = model.for_inference()
    assert next(own.blocks[0].attn.parameters()).dtype == HALF
    with torch.no_grad():
        assert torch.equal(own(images)["clip_dense"], model(images)["clip_dense"])
    assert own.active_blocks() is own.blocks and not own._converted
    assert next(model.blocks[0].attn.parameters()).dtype == torch.float32


@pytest.mark.parametrize("spread", [1.0, 6.0])
def test_attention_in_half_precision_rounds_no_more_than_torch(spread: float) -> None:
    torch.manual_seed(0)
    attention = Attention(64, 4).to(HALF)
    tokens = (torch.randn(2, 50, 64) * spread).to(HALF)
    with torch.no_grad():
        found = attention(tokens)
    exact = Attention(64, 4).double()
    exact.load_state_dict(attention.state_dict())
    expected = exact(tokens.double())
    # With gradients torch's own kernel computes it.
    torchs = attention(tokens)
    error, bound = ((x.double() - expected).abs().mean() for x in (found, torchs))
    assert error < 1.3 * bound < 0.1 * expected.abs().mean()


@pytest.mark.parametrize("name", ["bfloat16", "float32"])
def test_a_model_is_built_in_the_type_of_its_config(tiny_cfg: CfgNode, name: str) -> None:
    tiny_cfg.defrost()
    tiny_cfg.TEST.DTYPE = name
    assert CLIPViT(tiny_cfg, None).inference_dtype is getattr(torch, name)


@torch.no_grad()
def test_a_model_built_in_inference_mode_computes_the_same() -> None:
    images = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        built = build()
    found, expected = built(images), build()(images)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_surrounding_autocast_changes_no_prediction(tiny_cfg: CfgNode) -> None:
    model = build_model(tiny_cfg).eval()
    item = {"image": torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)}
    expected = model([item])[0]
    with torch.autocast("cpu", torch.bfloat16):
        found = model([item])[0]
    assert all(torch.equal(found[name], value) for name, value in expected.items())
