"""The upsampling matrices and the label grid behind the loss, and its memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.naive_loss import random_targets
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tagclip.modeling.losses.focal import binary_focal
from tagclip.modeling.losses.mask_losses import LabelGrid, interpolation_matrix, strided


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 600),
    low=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_matrices_equal_bilinear_interpolation(
    height: int, width: int, low: tuple[int, int]
) -> None:
    image = torch.randn(2, 3, *low, generator=torch.Generator().manual_seed(height * width))
    grid = LabelGrid(
        labels=torch.zeros(2, height, width, dtype=torch.int32),
        counted=None,
        rows=interpolation_matrix(height, low[0]),
        columns=interpolation_matrix(width, low[1]),
    )
    want = F.interpolate(image.double(), size=(height, width), mode="bilinear", align_corners=False)
    torch.testing.assert_close(grid.upsample(image).double(), want, rtol=0, atol=3e-6)


def test_the_official_upsampling_is_met_to_rounding() -> None:
    image = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    matrix = interpolation_matrix(512, 32)
    want = F.interpolate(image, size=(512, 512), mode="bilinear", align_corners=False)
    torch.testing.assert_close(matrix @ image @ matrix.T, want, rtol=0, atol=1e-6)


def test_adjoint_is_the_transpose_of_upsampling() -> None:
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(3, 4, 5, generator=generator)
    full = torch.randn(3, 13, 22, generator=generator)
    grid = LabelGrid(
        labels=torch.zeros(3, 13, 22, dtype=torch.int32),
        counted=None,
        rows=interpolation_matrix(13, 4),
        columns=interpolation_matrix(22, 5),
    )
    torch.testing.assert_close((grid.upsample(low) * full).sum(), (low * grid.adjoint(full)).sum())


@pytest.mark.parametrize("size", [1, 2, 5, 8, 17])
@pytest.mark.parametrize("stride", [1, 2, 3, 8])
def test_stride_keeps_the_middles_of_the_steps(size: int, stride: int) -> None:
    kept = list(range(size))[strided(size, stride)]
    assert kept
    if size >= stride:
        assert kept == list(range(stride // 2, size, stride))
    full = interpolation_matrix(size, 3)
    assert torch.equal(interpolation_matrix(size, 3, stride), full[kept])


def test_present_counts_labelled_pixels_only() -> None:
    targets = random_targets(4, (9, 7), images=3)
    labels = targets.labels.int()
    labels[labels == 255] = -1
    labels[0, 0, 0] = 4
    counted = torch.rand(labels.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    for mask in (None, counted):
        grid = LabelGrid(labels=labels, counted=mask, rows=torch.eye(9), columns=torch.eye(7))
        inside = torch.ones_like(counted) if mask is None else mask
        want = torch.stack([((labels == k) & inside).sum(dim=(1, 2)) for k in range(4)], dim=1)
        assert torch.equal(grid.present(4), want.float())
        assert torch.equal(grid.pixels(), inside.sum(dim=(1, 2)).float())


def test_binary_focal_is_the_formula() -> None:
    logits = torch.linspace(-6, 6, 25)
    p = torch.sigmoid(logits.double())
    ones = torch.ones(25, dtype=torch.bool)
    positive = binary_focal(logits, ones, 0.25, 2.0).double()
    negative = binary_focal(logits, ~ones, 0.25, 2.0).double()
    torch.testing.assert_close(positive, -0.25 * (1 - p) ** 2 * p.log(), rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(negative, -0.75 * p**2 * (1 - p).log(), rtol=1e-5, atol=1e-9)


MEMORY = """
import torch
from tagclip.modeling.losses.seg_loss import SegLoss, SegTargets
torch.set_num_threads(1)

def mebibytes(field):
    lines = dict(line.split(":") for line in open("/proc/self/status"))
    return int(lines[field].split()[0]) / 1024

labels = torch.arange(156).repeat(2, 512, 4)[:, :, :512].to(torch.uint8)
targets = SegTargets(labels=labels, valid=labels < 255, trusty=labels < 80, ignore=255)
logits = torch.randn(2, 156, 32, 32, requires_grad=True)
trusty = torch.randn(2, 1, 32, 32, requires_grad=True)
start = mebibytes("VmRSS")
for options in ({"workspace_mib": 8, "stride": 2}, {}):
    losses = SegLoss(**options)(logits, trusty, targets)
    sum(losses.values()).backward()
    print(mebibytes("VmHWM") - start)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_memory_does_not_grow_with_the_classes() -> None:
    """One float plane of 2 x 156 x 512 x 512 is 312 MiB, the plain way takes 4 GiB."""
    result = subprocess.run(
        [sys.executable, "-c", MEMORY],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parents[3],
    )
    small, default = map(float, result.stdout.split())
    assert small < 60
    assert default < 150
