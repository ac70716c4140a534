"""Fast paths against the plain operations they stand for."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tagclip.modeling.backbone.vit_block import QuickGELU
from tagclip.modeling.batching import stack_padded
from tagclip.modeling.inference.fusion import BestClass, label_dtype, upsample
from tagclip.modeling.inference.gate import GATE_MODES, Gate
from tagclip.modeling.inference.windows import WindowedImage, WindowGrid, window_logits
from tagclip.modeling.losses.focal import Focal, LabelledPixels


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
    factor=st.integers(1, 17),
    extra=st.integers(0, 2),
    width=st.integers(1, 50),
)
def test_upsampling_is_bilinear(
    rows: int, columns: int, factor: int, extra: int, width: int
) -> None:
    planes = torch.randn(3, rows, columns, generator=torch.Generator().manual_seed(0))
    size = (rows * factor + extra, width)
    expected = F.interpolate(planes[None].double(), size, mode="bilinear")[0]
    torch.testing.assert_close(upsample(planes, size).double(), expected, atol=2e-6, rtol=0)


def test_upsampling_keeps_equal_values_equal() -> None:
    planes = torch.full((1, 5, 4), 0.1)
    assert torch.equal(upsample(planes, (80, 64)), torch.full((1, 80, 64), 0.1))


@pytest.mark.parametrize("method", ["add_each", "add_chunk"])
@pytest.mark.parametrize("step", [1, 3, 20])
def test_best_class_equals_argmax(method: str, step: int) -> None:
    # Few values, so that ties happen, also at the lowest one and across chunks.
    scores = torch.randint(-2, 3, (20, 9, 11), generator=torch.Generator().manual_seed(0)).float()
    best = BestClass((9, 11), torch.device("cpu"))
    for start in range(0, 20, step):
        getattr(best, method)(start, scores[start : start + step])
    first = (scores == scores.amax(0)).int().argmax(0)
    assert torch.equal(best.labels(torch.int16).long(), first)
    assert torch.equal(best.scores, scores.amax(0))


def test_labels_are_as_small_as_they_may_be() -> None:
    assert label_dtype(32767) == torch.int16
    assert label_dtype(32768) == torch.int32


@pytest.mark.parametrize("mode", GATE_MODES)
@pytest.mark.parametrize("after", [False, True])
def test_the_gate_is_the_same_for_one_class_and_for_all(mode: str, after: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(6, 5, 7, generator=generator)
    trusty = torch.rand(1, 5, 7, generator=generator)
    seen = torch.tensor([True, False, True, True, False, False])
    gate = Gate(mode, bias=0.1, bias_after_gate=after)
    alone = [gate(scores[k : k + 1], trusty, seen[k : k + 1]) for k in range(6)]
    assert torch.equal(torch.cat(alone), gate(scores, trusty, seen))


def test_windows_of_several_images_share_batches() -> None:
    images = [
        WindowedImage(torch.rand(3, *size), WindowGrid.cover(*size, 8, 5), padded)
        for size, padded in (((8, 20), (8, 8)), ((6, 7), (8, 8)), ((30, 4), (8, 4)))
    ]
    batches = []

    def networks(
        cuts: list[torch.Tensor], padded: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        windows = stack_padded(cuts, padded, 0.0)
        batches.append(tuple(windows.shape))
        return windows.sum(dim=1, keepdim=True), windows[:, :1], windows[:, 1:2]

    found = list(window_logits(images, networks, 3, 10**6))
    assert batches == [(3, 3, 8, 8), (3, 3, 8, 4), (3, 3, 8, 4), (2, 3, 8, 8)]
    for image, view in zip(images, found, strict=True):
        classes, trusty, margins = view.class_logits, view.trusty_logits, view.margins
        assert (view.grid, view.padded_size) == (image.grid, image.padded_size)
        assert len(classes) == len(trusty) == len(margins) == len(image.grid)
        # Not a part of the batch, which would stay in memory with it.
        assert classes.untyped_storage().nbytes() == classes.nbytes
        parts = zip(classes, trusty, margins, image.grid, strict=True)
        for window, red, green, (rows, columns) in parts:
            cut = image.pixels[:, rows, columns]
            height, width = cut.shape[-2:]
            torch.testing.assert_close(window[0, :height, :width], cut.sum(dim=0))
            assert not window[0, height:].any() and not window[0, :, width:].any()
            assert torch.equal(red[0, :height, :width], cut[0])
            assert torch.equal(green[0, :height, :width], cut[1])


def test_a_full_memory_makes_smaller_batches_of_that_size_only() -> None:
    """Two of 8 x 8 pixels fit, and four of 8 x 4."""
    images = [
        WindowedImage(torch.rand(3, 8, width), WindowGrid.cover(8, width, 8, 8), (8, width))
        for width in (8, 4) * 12
    ]
    batches = []

    def networks(
        cuts: list[torch.Tensor], padded: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        batches.append((padded[1], len(cuts)))
        if padded[1] == 8 and len(cuts) > 2:
            raise torch.OutOfMemoryError("full")
        windows = stack_padded(cuts, padded, 0.0)
        return windows, windows[:, :1], None

    found = list(window_logits(images, networks, 4, 10**6))
    assert batches == [(8, 4), *[(8, 2), (8, 2), (4, 4)] * 3]
    for image, view in zip(images, found, strict=True):
        assert torch.equal(view.class_logits[0], image.pixels)


def test_an_image_waits_for_its_turn_without_its_pixels() -> None:
    pixels: list[weakref.ref] = []
    there = []

    def images() -> Iterator[WindowedImage]:
        for width in (8, 4, 4, 4, 4):
            there.append([reference() is not None for reference in pixels])
            tensor = torch.rand(3, 8, width)
            pixels.append(weakref.ref(tensor))
            yield WindowedImage(tensor, WindowGrid.cover(8, width, 8, 8), (8, width))

    found = window_logits(images(), lambda cuts, _: (torch.stack(cuts), None, None), 2, 10**6)
    assert len(list(found)) == 5
    # The first waits for another of its size, two of the others make a batch, and whoever asks for
    # the next image still has the last one in hand.
    assert there == [[], [1], [1, 1], [1, 0, 1], [1, 0, 0, 1]]


def test_images_of_a_batch_get_what_they_get_alone(
    tiny_cfg: CfgNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batches of a GPU, on the CPU."""
    model = build_model(tiny_cfg).eval()
    generator = torch.Generator().manual_seed(0)
    sizes = ((70, 133), (64, 64), (40, 90))
    items = [
        {"image": torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)}
        for size in sizes
    ]
    items[1]["views"] = [items[1], {"image": items[1]["image"].flip(-1), "mirrored": True}]
    alone = [model([item])[0] for item in items]
    sizes, forward = [], model.backbone.forward
    monkeypatch.setattr(model.backbone, "forward", lambda x: sizes.append(len(x)) or forward(x))
    monkeypatch.setattr(model, "_windows_per_batch", lambda: 4)
    together = model(items)
    # 2 x 3 windows of the first, 2 views of the second; 2 smaller windows of the third.
    assert sizes == [4, 4, 2]
    for one, other in zip(alone, together, strict=True):
        assert (one["sem_seg_labels"] != other["sem_seg_labels"]).float().mean() < 0.01
        torch.testing.assert_close(
            one["sem_seg_scores"], other["sem_seg_scores"], atol=1e-3, rtol=0
        )


def test_windows_without_trusty_logits() -> None:
    image = WindowedImage(torch.rand(3, 8, 8), WindowGrid.cover(8, 8, 8, 8), (8, 8))
    (view,) = window_logits([image], lambda cuts, _: (torch.stack(cuts), None, None), 1, 0)
    assert view.trusty_logits is None and torch.equal(view.class_logits[0], image.pixels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quick_gelu_is_the_formula_in_every_bit(dtype: torch.dtype) -> None:
    x = (3 * torch.randn(33, 17)).to(dtype).requires_grad_()
    gradient = torch.randn(33, 17).to(dtype)
    plain = x * torch.sigmoid(1.702 * x)
    (expected,) = torch.autograd.grad(plain, x, gradient)
    found = QuickGELU()(x)
    assert torch.equal(found, plain)
    assert torch.equal(torch.autograd.grad(found, x, gradient)[0], expected)
    with torch.no_grad():
        before = x.clone()
        assert torch.equal(QuickGELU()(x), plain) and torch.equal(x, before)


def test_quick_gelu_keeps_one_tensor() -> None:
    kept = []
    x = torch.randn(4, 5, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda x: x):
        QuickGELU()(x)
    assert len(kept) == 1


def test_both_sides_of_the_focal_loss() -> None:
    """Against float64 and autograd, far beyond where the sigmoid rounds to 0 or 1."""
    u = torch.linspace(-200, 200, 4001)[None, None]
    wide = u.double().requires_grad_()
    for gamma in (0.0, 1.5, 2.0):
        focal = Focal(0.3, gamma)
        value, slope = focal.negative(u)
        expected = 0.7 * wide.sigmoid() ** gamma * F.softplus(wide)
        (derivative,) = torch.autograd.grad(expected.sum(), wide)
        torch.testing.assert_close(value.double(), expected, atol=1e-7, rtol=2e-6)
        torch.testing.assert_close(slope.double(), derivative, atol=1e-7, rtol=2e-6)
        focal.put_positive(value, slope, u, torch.arange(4001))
        expected = 0.3 * (-wide).sigmoid() ** gamma * F.softplus(-wide)
        (derivative,) = torch.autograd.grad(expected.sum(), wide)
        torch.testing.assert_close(value.double(), expected, atol=1e-7, rtol=2e-6)
        torch.testing.assert_close(slope.double(), derivative, atol=1e-7, rtol=2e-6)


def test_labelled_pixels_are_found_once() -> None:
    labels = torch.tensor([[2, -1, 0], [2, 7, 1]], dtype=torch.int32)
    pixels = LabelledPixels(labels, 4)
    assert sorted(pixels.places(slice(0, 2)).tolist()) == [2, 6 + 5]
    assert sorted(pixels.places(slice(2, 4)).tolist()) == [0, 3]
