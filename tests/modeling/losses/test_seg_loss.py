"""SegLoss against the plain float64 way, in value and gradient."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from detectron2.utils import comm
from helpers.naive_loss import naive_losses, random_targets
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tagclip.errors import ConfigError
from tagclip.modeling.losses.seg_loss import SegLoss, SegTargets, pixel_accuracy

WEIGHTS = {"loss_mask": 0.7, "loss_dice": -1.3, "loss_trusty": 2.1}


def random_logits(*shape: int, scale: float = 3.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gradients(losses: dict[str, Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """Of a combination in which every loss has an upstream gradient of its own."""
    return torch.autograd.grad(sum(WEIGHTS[k] * v for k, v in losses.items()), inputs)


def assert_equals_naive(
    loss: SegLoss, logits: Tensor, trusty: Tensor | None, targets: SegTargets, **options: Any
) -> None:
    inputs = [x.requires_grad_() for x in (logits, trusty) if x is not None]
    got = loss(logits, trusty, targets)
    want = naive_losses(logits, trusty, targets, **options)
    assert got.keys() == want.keys()
    for name in want:
        assert got[name].dtype == torch.float32
        torch.testing.assert_close(got[name].double(), want[name], rtol=1e-5, atol=1e-6)
    for mine, plain in zip(gradients(got, inputs), gradients(want, inputs), strict=True):
        # Where every probability is near 0 or 1, p (1 - p) is known to the rounding of p alone.
        tolerance = max(1e-5 * float(plain.abs().max()), 4 * torch.finfo(torch.float32).eps)
        torch.testing.assert_close(mine, plain, rtol=0, atol=tolerance)


@settings(max_examples=60, deadline=None)
@given(
    classes=st.integers(1, 9),
    low=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    factor=st.tuples(st.integers(2, 9), st.integers(2, 9)),
    images=st.integers(1, 3),
    ignored=st.sampled_from([0.0, 0.3, 1.0]),
    padding=st.integers(0, 1),
    ignore_as_negative=st.booleans(),
    stride=st.integers(1, 3),
    alpha=st.sampled_from([0.25, 0.6]),
    gamma=st.sampled_from([0.0, 1.0, 1.5, 2.0]),
    chunk=st.sampled_from([0.0, 0.05, 256]),
    trusty_loss=st.sampled_from(["", "focal", "dice"]),
    with_open_classes=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_value_and_gradient_equal_the_plain_way(
    classes: int,
    low: tuple[int, int],
    factor: tuple[int, int],
    images: int,
    ignored: float,
    padding: int,
    ignore_as_negative: bool,
    stride: int,
    alpha: float,
    gamma: float,
    chunk: float,
    trusty_loss: str,
    with_open_classes: bool,
    seed: int,
) -> None:
    size = (low[0] * factor[0] + 1, low[1] * factor[1] + 2)
    targets = random_targets(classes, size, images, ignored, padding, seed)
    if not trusty_loss:
        targets = replace(targets, trusty=None)
    if with_open_classes:
        targets = replace(targets, open_classes=torch.arange(classes) % 2 == seed % 2)
    options = {
        "ignore_as_negative": ignore_as_negative,
        "stride": stride,
        "trusty_loss": trusty_loss or "focal",
    }
    loss = SegLoss(focal_alpha=alpha, focal_gamma=gamma, workspace_mib=chunk, **options)
    assert_equals_naive(
        loss,
        random_logits(images, classes, *low, seed=seed),
        random_logits(images, 1, *low, seed=seed + 1) if trusty_loss else None,
        targets,
        alpha=alpha,
        gamma=gamma,
        **options,
    )


@pytest.mark.parametrize("classes", [1, 300, 1000])
def test_any_number_of_classes(classes: int) -> None:
    targets = random_targets(classes, (32, 32))
    logits, trusty = random_logits(2, classes, 4, 4), random_logits(2, 1, 4, 4)
    assert_equals_naive(SegLoss(workspace_mib=1), logits, trusty, targets)


@pytest.mark.parametrize("ignore_as_negative", [True, False])
def test_large_logits_are_finite_and_exact(ignore_as_negative: bool) -> None:
    targets = random_targets(5, (32, 32), ignored=0.5)
    logits = random_logits(2, 5, 4, 4, scale=300)
    trusty = random_logits(2, 1, 4, 4, scale=300)
    loss = SegLoss(ignore_as_negative=ignore_as_negative)
    assert_equals_naive(loss, logits, trusty, targets, ignore_as_negative=ignore_as_negative)


@pytest.mark.parametrize("ignore_as_negative", [True, False])
def test_chunk_size_does_not_matter(ignore_as_negative: bool) -> None:
    targets = random_targets(37, (96, 80), padding=7)
    logits = random_logits(2, 37, 6, 5).requires_grad_()
    trusty = random_logits(2, 1, 6, 5)
    results = []
    for workspace in (0.0, 0.5, 1.7, 256):
        loss = SegLoss(workspace_mib=workspace, ignore_as_negative=ignore_as_negative)
        losses = loss(logits, trusty, targets)
        results.append((losses, gradients(losses, [logits])[0]))
    first, first_gradient = results[0]
    for losses, gradient in results[1:]:
        for name in first:
            torch.testing.assert_close(losses[name], first[name], rtol=1e-6, atol=0)
        torch.testing.assert_close(
            gradient, first_gradient, rtol=0, atol=1e-6 * float(gradient.abs().max())
        )


@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
def test_gradient_is_the_slope_of_the_value(gamma: float) -> None:
    targets = random_targets(6, (64, 48))
    loss = SegLoss(focal_gamma=gamma)
    logits, direction = random_logits(2, 6, 4, 3), random_logits(2, 6, 4, 3, seed=9)
    trusty = random_logits(2, 1, 4, 3)

    def total(z: Tensor) -> Tensor:
        losses = loss(z, trusty, targets)
        return losses["loss_mask"].double() - 3 * losses["loss_dice"].double()

    leaf = logits.clone().requires_grad_()
    analytic = (torch.autograd.grad(total(leaf), leaf)[0] * direction).sum().double()
    step = 3e-3
    slope = (total(logits + step * direction) - total(logits - step * direction)) / (2 * step)
    torch.testing.assert_close(analytic, slope, rtol=2e-3, atol=1e-3)


def test_each_loss_has_its_own_upstream_gradient() -> None:
    targets = random_targets(4, (32, 32))
    logits, trusty = random_logits(2, 4, 4, 4).requires_grad_(), random_logits(2, 1, 4, 4)
    losses = SegLoss()(logits, trusty, targets)
    want = naive_losses(logits, trusty, targets)
    for name in ("loss_mask", "loss_dice"):
        (got,) = torch.autograd.grad(losses[name], logits, retain_graph=True)
        (plain,) = torch.autograd.grad(want[name], logits, retain_graph=True)
        torch.testing.assert_close(got, plain, rtol=0, atol=1e-5 * float(plain.abs().max()))


def test_second_derivatives_are_refused() -> None:
    logits = random_logits(1, 2, 4, 4).requires_grad_()
    losses = SegLoss()(logits, None, replace(random_targets(2, (16, 16), 1), trusty=None))
    (gradient,) = torch.autograd.grad(losses["loss_mask"], logits, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradient.sum().backward()


def test_weights_scale_their_terms() -> None:
    targets = random_targets(3, (16, 16))
    logits, trusty = random_logits(2, 3, 4, 4), random_logits(2, 1, 4, 4)
    losses = SegLoss(mask_weight=1, dice_weight=5, trusty_weight=0)(logits, trusty, targets)
    want = naive_losses(logits, trusty, targets)
    torch.testing.assert_close(losses["loss_mask"].double() * 20, want["loss_mask"])
    torch.testing.assert_close(losses["loss_dice"].double() / 5, want["loss_dice"])
    assert losses["loss_trusty"] == 0


@pytest.mark.parametrize("stride", [1, 2])
def test_batch_without_any_label_as_negative(stride: int) -> None:
    targets = random_targets(3, (16, 16), ignored=1.0)
    logits, trusty = random_logits(2, 3, 4, 4), random_logits(2, 1, 4, 4)
    assert_equals_naive(SegLoss(stride=stride), logits, trusty, targets, stride=stride)
    losses = SegLoss(stride=stride)(logits, trusty, targets)
    assert losses["loss_mask"] > 0
    assert losses["loss_dice"] == 0
    assert losses["loss_dice"].requires_grad


def test_batch_without_any_label_left_out_is_zero_and_connected() -> None:
    targets = random_targets(3, (16, 16), ignored=1.0)
    logits = random_logits(2, 3, 4, 4).requires_grad_()
    trusty = random_logits(2, 1, 4, 4).requires_grad_()
    losses = SegLoss(ignore_as_negative=False)(logits, trusty, targets)
    assert all(value == 0 and value.requires_grad for value in losses.values())
    assert not any(gradient.any() for gradient in gradients(losses, [logits, trusty]))


def test_one_image_of_two_without_labels() -> None:
    targets = random_targets(3, (16, 16))
    targets.labels[1] = targets.ignore
    for ignore_as_negative in (True, False):
        assert_equals_naive(
            SegLoss(ignore_as_negative=ignore_as_negative),
            random_logits(2, 3, 4, 4),
            random_logits(2, 1, 4, 4),
            targets,
            ignore_as_negative=ignore_as_negative,
        )


def test_ignored_pixels_left_out_cannot_matter() -> None:
    """Logits that only reach ignored pixels get no gradient, whatever they are."""
    targets = random_targets(3, (16, 16), ignored=0.0)
    targets.labels[:, :, 8:] = targets.ignore
    logits = random_logits(2, 3, 4, 4).requires_grad_()
    trusty = random_logits(2, 1, 4, 4).requires_grad_()
    losses = SegLoss(ignore_as_negative=False)(logits, trusty, targets)
    for gradient in gradients(losses, [logits, trusty]):
        assert not gradient[..., 3].any()
        assert gradient[..., 0].any()


def test_stride_larger_than_the_image_keeps_a_pixel() -> None:
    targets = random_targets(2, (1, 3), ignored=0.0)
    losses = SegLoss(stride=8)(random_logits(2, 2, 1, 1), random_logits(2, 1, 1, 1), targets)
    assert all(torch.isfinite(value) and value > 0 for value in losses.values())


@pytest.mark.parametrize("stride", [0, -1])
def test_stride_below_one_is_refused(stride: int) -> None:
    with pytest.raises(ConfigError, match="LOSS.STRIDE"):
        SegLoss(stride=stride)


def test_bfloat16_logits_are_evaluated_in_float32() -> None:
    targets = random_targets(4, (64, 64))
    logits = random_logits(2, 4, 4, 4).bfloat16().requires_grad_()
    trusty = random_logits(2, 1, 4, 4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = SegLoss()(logits, trusty, targets)
        (gradient,) = gradients(losses, [logits])
    exact = logits.detach().float().requires_grad_()
    want = SegLoss()(exact, trusty.float(), targets)
    assert all(torch.equal(losses[name], want[name]) for name in want)
    assert torch.equal(gradient, gradients(want, [exact])[0].bfloat16())


def test_training_after_a_loss_under_inference_mode() -> None:
    targets = random_targets(2, (23, 29))
    logits, trusty = random_logits(2, 2, 3, 5), random_logits(2, 1, 3, 5)
    with torch.inference_mode():
        SegLoss()(logits, trusty, targets)
    assert_equals_naive(SegLoss(), logits, trusty, targets)


def test_pairs_are_averaged_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = random_targets(5, (16, 16))
    logits, trusty = random_logits(2, 5, 4, 4), random_logits(2, 1, 4, 4)

    def all_reduce(value: Tensor) -> None:
        value += 21  # the other process has 21 pairs, this one 2 x 5

    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    got = SegLoss()(logits, trusty, targets)
    want = naive_losses(logits, trusty, targets, pairs=15.5)
    for name in want:
        torch.testing.assert_close(got[name].double(), want[name], rtol=1e-5, atol=0)


def test_pixel_accuracy_counts_patch_centres() -> None:
    labels = torch.full((1, 8, 8), 255, dtype=torch.uint8)
    centres = torch.tensor([[0, 1], [255, 2]], dtype=torch.uint8)
    labels[0, 2::4, 2::4] = centres
    targets = SegTargets(labels=labels, valid=labels >= 0, trusty=None, ignore=255)
    best = torch.tensor([[0, 1], [1, 1]])
    logits = torch.nn.functional.one_hot(best, 3).permute(2, 0, 1)[None].float()
    accuracy, count = pixel_accuracy(logits.requires_grad_(), targets)
    assert (accuracy, count) == (pytest.approx(200 / 3), 3)


def test_pixel_accuracy_without_labels_is_100() -> None:
    targets = random_targets(3, (16, 16), ignored=1.0)
    assert pixel_accuracy(random_logits(2, 3, 4, 4), targets) == (100, 0)


def test_an_unknown_trusty_loss_is_refused() -> None:
    with pytest.raises(ConfigError, match="TRUSTY.LOSS: found 'tversky', expected 'focal'"):
        SegLoss(trusty_loss="tversky")


def test_losses_that_are_all_off_are_refused() -> None:
    for name in ("mask", "dice", "trusty"):
        weights = {f"{each}_weight": float(each == name) for each in ("mask", "dice", "trusty")}
        SegLoss(**weights)
    with pytest.raises(ConfigError, match="^MODEL.TAGCLIP.LOSS: found MASK, DICE and TRUSTY 0"):
        SegLoss(mask_weight=0, dice_weight=0, trusty_weight=0)
