"""Mask decoder against a plain float64 decoder whose last layer is computed in full."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tagclip.errors import ConfigError
from tagclip.modeling.heads import MaskDecoder

DIM, HEADS = 16, 4


def make_decoder(layers: str = "ann", dropout: float = 0.0) -> MaskDecoder:
    """With random norms and biases, so that leaving one out shows."""
    torch.manual_seed(0)
    decoder = MaskDecoder(dim=DIM, num_heads=HEADS, layers=layers, dropout=dropout)
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return decoder


def random_inputs(queries: int = 5, patches: int = 9, images: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(images, queries, DIM, generator=generator),
        torch.randn(images, patches, DIM, generator=generator),
    )


def plain_self_attention(module: nn.Module, queries: Tensor) -> Tensor:
    reference = nn.MultiheadAttention(DIM, HEADS, batch_first=True, dtype=torch.float64)
    reference.load_state_dict(
        {
            "in_proj_weight": module.qkv.weight,
            "in_proj_bias": module.qkv.bias,
            "out_proj.weight": module.proj.weight,
            "out_proj.bias": module.proj.bias,
        }
    )
    return module.norm(queries + reference(queries, queries, queries)[0])


def plain_scores(layer: nn.Module, queries: Tensor, memory: Tensor) -> Tensor:
    """(N, heads, Q, n) scaled scores of a cross-attention, head by head."""
    q = layer.query(queries).split(DIM // HEADS, dim=-1)
    k = layer.key(memory).split(DIM // HEADS, dim=-1)
    scores = [a @ b.transpose(1, 2) / math.sqrt(DIM // HEADS) for a, b in zip(q, k, strict=True)]
    return torch.stack(scores, dim=1)


def plain_decoder(decoder: MaskDecoder, queries: Tensor, memory: Tensor) -> Tensor:
    for layer in [*decoder.layers, decoder.logits]:
        if layer.self_attention is not None:
            queries = plain_self_attention(layer.self_attention, queries)
        scores = plain_scores(layer, queries, memory)
        if layer is decoder.logits:
            break
        values = layer.value(memory).split(DIM // HEADS, dim=-1)
        heads = [scores[:, h].softmax(dim=-1) @ v for h, v in enumerate(values)]
        queries = layer.norm(queries + layer.proj(torch.cat(heads, dim=-1)))
        hidden = F.relu(F.linear(queries, layer.ffn[0].weight, layer.ffn[0].bias))
        update = F.linear(hidden, layer.ffn[3].weight, layer.ffn[3].bias)
        queries = layer.ffn_norm(queries + update)
    return scores.mean(dim=1)


@pytest.mark.parametrize("layers", ["ann", "nnn", "aaa", "nna", "n", "a", "an"])
def test_equals_a_plain_decoder(layers: str) -> None:
    decoder = make_decoder(layers).eval()
    queries, memory = random_inputs()
    got = decoder(queries, memory)
    want = plain_decoder(decoder.double(), queries.double(), memory.double())
    assert got.shape == (2, 5, 9)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-5)


def test_every_parameter_gets_a_gradient() -> None:
    decoder = make_decoder("ana")
    decoder(*random_inputs()).square().sum().backward()
    # A bias that moves all scores of a softmax alike: its gradient is rounding noise.
    flat = {"layers.0.key.bias", "layers.1.key.bias"}
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, name
        largest = float(parameter.grad.abs().max())
        assert largest < 1e-3 if name in flat else largest > 1e-2, (name, largest)


def test_layers_without_self_attention_do_not_own_it() -> None:
    names = [name for name, _ in MaskDecoder(dim=DIM, num_heads=HEADS).named_parameters()]
    assert {n.split(".self_attention")[0] for n in names if "self_attention" in n} == {"layers.0"}
    last = {name.removeprefix("logits.") for name in names if name.startswith("logits.")}
    assert last == {"query.weight", "query.bias", "key.weight", "key.bias"}


def test_dropout_acts_in_training_only() -> None:
    decoder = make_decoder(dropout=0.5)
    inputs = random_inputs()
    assert not torch.equal(decoder(*inputs), decoder(*inputs))
    decoder.eval()
    assert torch.equal(decoder(*inputs), decoder(*inputs))
    assert torch.equal(decoder(*inputs), make_decoder(dropout=0.0)(*inputs))


@pytest.mark.parametrize("part", ["attention", "update"])
def test_dropout_reaches_attention_weights_and_updates(part: str) -> None:
    decoder = make_decoder("nn", dropout=0.5)
    (layer,) = decoder.layers
    if part == "attention":
        for module in layer.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    else:
        layer.attention_dropout = 0.0
    inputs = random_inputs()
    assert not torch.equal(decoder(*inputs), decoder(*inputs))


def test_logits_are_float32_under_autocast() -> None:
    decoder = make_decoder().eval()
    inputs = random_inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = decoder(*inputs)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, decoder(*inputs), rtol=0, atol=0.1)


def test_initialisation_is_that_of_the_released_constructor() -> None:
    torch.manual_seed(0)
    decoder = MaskDecoder(dim=64, num_heads=8)
    for name, parameter in decoder.named_parameters():
        if parameter.ndim > 1:
            bound = (6 / sum(parameter.shape)) ** 0.5
            assert 0.95 * bound < parameter.abs().max() <= bound, name
        elif "self_attention" in name and "norm" not in name:
            assert not parameter.any(), name
        elif "norm" not in name:
            fan_in = 256 if name.endswith("ffn.3.bias") else 64
            assert 0.8 * fan_in**-0.5 < parameter.abs().max() <= fan_in**-0.5, name


@pytest.mark.parametrize("layers", ["", "abn", "a_n_n"])
def test_unknown_layers_are_refused(layers: str) -> None:
    with pytest.raises(ConfigError, match=r"MODEL\.TAGCLIP\.LAYERS: found"):
        MaskDecoder(dim=DIM, num_heads=HEADS, layers=layers)


@pytest.mark.parametrize("heads", [0, 3, 32])
def test_heads_that_do_not_divide_are_refused(heads: int) -> None:
    with pytest.raises(ConfigError, match=r"NUM_HEADS: found .* divisor .* 16"):
        MaskDecoder(dim=DIM, num_heads=heads)
