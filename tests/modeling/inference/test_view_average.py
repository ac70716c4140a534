"""Test-time augmentation: the mean of separately computed scores, and what must not change it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from helpers.tiny_run import (
    changed,
    exit_of,
    load_tool,
    own_loggers,
    run_arguments,
    write_run_config,
)
from torch import Tensor, nn

from tagclip.data.inference_input import InferenceInput
from tagclip.evaluation.results import read_metrics
from tagclip.modeling.inference.fusion import ScoreFusion
from tagclip.utils.cli import run_tool

IMAGE = np.random.default_rng(0).integers(0, 256, (70, 101, 3), np.uint8)
SIZE = IMAGE.shape[:2]
VIEWS = ("TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (48, 70), "TEST.AUG.MAX_SIZE", 0)


@pytest.fixture
def model(tiny_cfg: CfgNode) -> nn.Module:
    torch.manual_seed(0)
    model = build_model(tiny_cfg).eval()
    model.inference_settings = replace(model.inference_settings, output="scores")
    # Differences of a random model are small: make them visible.
    with torch.no_grad():
        model.sem_seg_head.decoder.logits.query.weight *= 50
    return model


def item(cfg: CfgNode, *opts: object, image: np.ndarray = IMAGE) -> dict:
    return InferenceInput.from_config(changed(cfg, *VIEWS, *opts))(image)


def alone(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    return model([{"image": image, "height": SIZE[0], "width": SIZE[1]}])[0]


def test_views_are_averaged_after_the_gate(tiny_cfg: CfgNode, model: nn.Module) -> None:
    sample = item(tiny_cfg)
    assert len(sample["views"]) == 4
    scores, trusty = np.zeros((5, *SIZE)), np.zeros(SIZE)
    for view in sample["views"]:
        single = alone(model, view["image"])
        step = -1 if view["mirrored"] else 1
        scores += single["sem_seg"].double().numpy()[..., ::step] / 4
        trusty += single["trusty"].double().numpy()[..., ::step] / 4
    found = model([sample])[0]
    np.testing.assert_allclose(found["sem_seg"], scores, atol=1e-6)
    np.testing.assert_allclose(found["trusty"].float(), trusty, atol=1e-3)
    assert np.abs(scores - alone(model, sample["image"])["sem_seg"].numpy()).max() > 0.02


@pytest.mark.parametrize("step", [1, 2, 3])
def test_labels_are_those_of_the_mean_scores(
    tiny_cfg: CfgNode, model: nn.Module, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = item(tiny_cfg)
    best, labels = model([sample])[0]["sem_seg"].max(0)
    threshold = float(best.median())
    settings = replace(model.inference_settings, output="labels", background_threshold=threshold)
    model.inference_settings = settings
    # The chunked path that a GPU takes.
    monkeypatch.setattr(ScoreFusion, "classes_per_chunk", lambda self, size: step)
    found = model([sample])[0]
    assert len(labels.unique()) > 1
    # Two neighbouring classes may score alike up to rounding.
    expected = torch.where(best < threshold, -1, labels)
    assert (found["sem_seg_labels"] != expected).float().mean() < 1e-3
    torch.testing.assert_close(found["sem_seg_scores"].float(), best, atol=1e-3, rtol=0)


def test_a_single_view_changes_no_bit(tiny_cfg: CfgNode, model: nn.Module) -> None:
    plain = InferenceInput.from_config(tiny_cfg)(IMAGE)
    single = item(tiny_cfg, "TEST.AUG.MIN_SIZES", (64,), "TEST.AUG.FLIP", False)
    listed = plain | {"views": [{"image": plain["image"], "mirrored": False}]}
    expected = model([plain])[0]
    for sample in (single, listed):
        found = model([sample])[0]
        assert torch.equal(found["sem_seg"], expected["sem_seg"])
        assert torch.equal(found["trusty"], expected["trusty"])


def test_the_mirrored_view_of_a_mirrored_image_scores_as_the_image(
    tiny_cfg: CfgNode, model: nn.Module
) -> None:
    turned = np.ascontiguousarray(IMAGE[:, ::-1])
    sample = item(tiny_cfg, "TEST.AUG.MIN_SIZES", (64,), image=turned)
    sample["views"] = [view for view in sample["views"] if view["mirrored"]]
    expected = model([InferenceInput.from_config(tiny_cfg)(IMAGE)])[0]
    found = model([sample])[0]
    for key in ("sem_seg", "trusty"):
        assert torch.equal(found[key].flip(-1), expected[key])
        assert not torch.equal(found[key], expected[key])


def test_evaluation_with_views(tiny_cfg: CfgNode, tmp_path: Path, repository: Path) -> None:
    train_net = load_tool(repository / "tools" / "train_net.py")
    config = write_run_config(tiny_cfg, tmp_path)
    weights = ("MODEL.WEIGHTS", tmp_path / "output" / "model_final.pth")

    def evaluate(folder: str, *opts: object) -> dict:
        options = ("OUTPUT_DIR", tmp_path / folder, *weights, *opts)
        train_net.main(run_arguments(config, *options, eval_only=True))
        (path,) = (tmp_path / folder).glob("inference/*/metrics.json")
        return read_metrics(path)

    with own_loggers():
        plain = train_net.main(run_arguments(config))["sem_seg"]["mIoU"]
        views = evaluate("views", *VIEWS)
        one = evaluate(
            "one", *VIEWS, "TEST.AUG.MIN_SIZES", "(64,)", "TEST.AUG.FLIP", False
        )  # what INPUT.MIN_SIZE_TEST says
        scores = evaluate("scores", *VIEWS, "MODEL.TAGCLIP.TEST.OUTPUT", "scores")
        wrong = ("OUTPUT_DIR", tmp_path / "wrong", *weights, *VIEWS, "TEST.AUG.MIN_SIZES", "()")
        line = exit_of(run_tool, train_net.start, run_arguments(config, *wrong, eval_only=True))
    assert one["metrics"]["mIoU"] == plain
    assert views["confusion"] != one["confusion"]
    assert views["images"] == 3 and views["confusion"] == scores["confusion"]
    assert views["run"]["test_augmentation"]["MIN_SIZES"] == [48, 70]
    assert line.startswith("ConfigError: TEST.AUG.MIN_SIZES: found ()")
    assert not (tmp_path / "wrong").exists()
