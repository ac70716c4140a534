"""The fused kernel: in Triton's interpreter, compiled for GPUs that are not there, and without."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from helpers.fusion_cases import GATES, SCENES, fusion_case, reference_scores
from helpers.paths import REPOSITORY

from tagclip.modeling.inference import triton_fusion
from tagclip.modeling.inference.triton_fusion import can_fuse, fused_labels, is_available
from tagclip.projects.benchmark.fusion_kernel import CAPABILITIES, kernel_resources

needs_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="torch brings triton on Linux alone"
)


@pytest.mark.slow
@needs_triton
def test_the_kernel_in_the_interpreter() -> None:
    tests = Path(__file__).with_name("interpreted_triton_fusion.py")
    line = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(tests)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(line, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@needs_triton
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("has_trusty", [True, False])
def test_nothing_is_spilled(
    capability: int, has_trusty: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found = kernel_resources(capability, has_trusty)
    print(f"sm_{capability}, trusty map {has_trusty}: {found}")
    assert found.spilled == 0 and found.registers < 255


@needs_triton
def test_a_tile_that_is_too_large_is_seen_to_spill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figures are those of the kernel: 64 sums and 256 logits do not fit in 255 registers."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert kernel_resources(80, True, (64, 32)).spilled > 0


def test_cpus_go_their_own_way() -> None:
    assert not is_available(torch.device("cpu"))
    assert not can_fuse(fusion_case("views").views, (3, 9))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_where_the_kernel_cannot_run_the_log_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    is_available.cache_clear()
    with caplog.at_level(logging.INFO, triton_fusion.__name__):
        assert not is_available(torch.device("cuda"))
        assert not is_available(torch.device("cuda"))
    is_available.cache_clear()
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "cannot run on cuda (" in record.message
    assert "\n" not in record.message


def test_a_full_memory_says_nothing_about_the_next_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("full")

    is_available.cache_clear()
    monkeypatch.setattr(torch, "zeros", full)
    with pytest.raises(torch.OutOfMemoryError):
        is_available(torch.device("cuda"))
    assert is_available.cache_info().currsize == 0


@pytest.mark.parametrize("size", [(3, 2**15), (2**15, 9)])
def test_whole_numbers_of_the_kernel_do_not_overflow(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_fusion, "is_available", lambda device: True)
    fusion = fusion_case("views")
    assert can_fuse(fusion.views, (3, 2**15 - 1)) and not can_fuse(fusion.views, size)
    # Views of several models are no views of one image.
    without = replace(fusion.views[0], trusty_logits=None)
    assert not can_fuse((*fusion.views, without), (3, 9))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("gate", GATES)
def test_on_a_gpu(scene: str, gate: str) -> None:
    fusion, size = fusion_case(scene, classes=40, **GATES[gate]), (30, 90)
    planes, trusty = map(torch.from_numpy, reference_scores(fusion, size))
    ranked = planes.sort(dim=0, descending=True).values
    views = [
        replace(
            view, class_logits=view.class_logits.cuda(), trusty_logits=view.trusty_logits.cuda()
        )
        for view in fusion.views
    ]
    labels, scores, found = fused_labels(
        views, fusion.seen_mask.cuda(), fusion.gate, fusion.trusty_target, size
    )
    torch.testing.assert_close(scores.double().cpu(), ranked[0], atol=2e-6, rtol=0)
    torch.testing.assert_close(found.double().cpu(), trusty, atol=2e-6, rtol=0)
    is_clear = ranked[0] - ranked[1] > 4e-6
    assert torch.equal(labels.long().cpu()[is_clear], planes.argmax(0)[is_clear])
