"""Pause points: every long computation of a prediction has them, and what they raise ends it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from helpers.pictures import picture
from helpers.tiny_checkpoint import save_tiny
from PIL import Image

from tagclip import TagCLIPPredictor
from tagclip.utils.stepping import between_steps, pause_point


class Stopped(Exception):
    pass


class Count:
    """Counts the pause points; raises at one of them."""

    def __init__(self, stop_at: int = 0) -> None:
        self.count, self.stop_at = 0, stop_at

    def __call__(self) -> None:
        self.count += 1
        if self.count == self.stop_at:
            raise Stopped


def test_the_innermost_function_is_called_and_nothing_without_one() -> None:
    outer, inner = Count(), Count()
    pause_point()
    with between_steps(outer):
        pause_point()
        with between_steps(inner):
            pause_point()
        with pytest.raises(Stopped), between_steps(Count(stop_at=1)):
            pause_point()
        pause_point()
    pause_point()
    assert (outer.count, inner.count) == (2, 1)


@pytest.fixture
def predictor(tiny_cfg: CfgNode, tmp_path: Path) -> TagCLIPPredictor:
    weights = save_tiny(tiny_cfg, tmp_path / "output")
    return TagCLIPPredictor.from_checkpoint(weights, ["MODEL.CLIP.TEXT_BATCH", "10"])


@pytest.mark.parametrize("top_k", [0, 3])
@pytest.mark.parametrize("count", [4, 60])
def test_windows_prompts_and_logits_are_done_in_steps(
    predictor: TagCLIPPredictor, count: int, top_k: int
) -> None:
    """Planes of few classes, tiles of many (60), planes again where classes are ranked."""
    size = (640, 2000)
    image, names = picture(64, 400), [f"word {k}" for k in range(count)]
    prompts, windows = Count(), Count()
    with between_steps(prompts):
        predictor.set_vocabulary(names)
    assert prompts.count == -(-count // 10)
    with between_steps(windows):
        fusion = predictor.encode(image, predictor.asked)
    assert windows.count == len(fusion.views[0].grid) == 8
    with between_steps(steps := Count()):
        found = fusion.labels(size, top_k=top_k)
    assert steps.count >= 4
    assert torch.equal(found["sem_seg_labels"], fusion.labels(size)["sem_seg_labels"])
    for stop_at in (1, steps.count):
        with pytest.raises(Stopped), between_steps(Count(stop_at)):
            fusion.labels(size, top_k=top_k)
    with pytest.raises(Stopped), between_steps(last := Count(stop_at=3)):
        predictor.encode(image, predictor.asked)
    assert last.count == 3


@pytest.mark.parametrize("size", [(70, 95), (64, 400), (1, 30), (300, 20)])
@pytest.mark.parametrize(
    "opts", [[], ["TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "[64, 96]"]]
)
def test_the_demand_of_a_size_is_what_encoding_takes(
    tiny_cfg: CfgNode, tmp_path: Path, size: tuple[int, int], opts: list[str]
) -> None:
    predictor = TagCLIPPredictor.from_checkpoint(save_tiny(tiny_cfg, tmp_path / "output"), opts)
    path = tmp_path / "a.png"
    Image.fromarray(picture(*size)).save(path)
    asked = predictor.resolve(["cat", "zebra"])
    demand = predictor.demand(size, asked)
    views = predictor.encode(path, asked).views
    logits = [t for view in views for t in (view.class_logits, view.trusty_logits)]
    assert demand.size == size and demand.windows == sum(len(view.grid) for view in views)
    assert demand.logits_nbytes == sum(t.nbytes for t in logits if t is not None)
    assert demand.nbytes >= demand.logits_nbytes + 3 * size[0] * size[1]
