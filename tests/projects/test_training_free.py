"""projects/TrainingFree: key smoothing, evaluation without any checkpoint, configs, old names."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from helpers.clip_files import random_clip
from helpers.naive_last_block import METHODS
from helpers.paths import REPOSITORY
from helpers.tiny_run import changed, own_loggers, run_arguments, write_run_config
from helpers.tiny_vit import SIZES, images, vision_state
from torch import Tensor
from torch.nn import functional as F

from tagclip import load_config
from tagclip.checkpoint.checkpointer import trained_state
from tagclip.data import Protocol
from tagclip.errors import CheckpointError, ConfigError
from tagclip.modeling.backbone import CLIPViT
from tagclip.modeling.clip.text_bank import prompt_templates
from tagclip.projects import import_projects
from tagclip.projects.minibench.generate import scene
from tagclip.projects.training_free import TrainingFreeHead
from tagclip.projects.training_free.head import log_odds, smooth_by_keys

CONFIGS = REPOSITORY / "projects" / "TrainingFree" / "configs"
LEAVES = sorted(path for path in CONFIGS.glob("[!B]*.yaml") if not path.stem.endswith("_convtrust"))
MINIBENCH = CONFIGS / "maskclip_minibench_composition.yaml"
SMOOTHING = ("MODEL.SEM_SEG_HEAD.IN_FEATURES", ["clip_dense", "clip_keys"])


@torch.no_grad()
def test_values_equal_open_clips_modules() -> None:
    clip, batch = random_clip(), images(4, 4)
    last, inputs = clip.visual.transformer.resblocks[-1], []
    handle = last.ln_1.register_forward_hook(lambda *args: inputs.append(args[-1]))
    clip.visual(batch)
    handle.remove()
    weight, bias = last.attn.in_proj_weight[128:], last.attn.in_proj_bias[128:]
    values = last.attn.out_proj(F.linear(inputs[0][:, 1:], weight, bias))
    values = F.normalize(clip.visual.ln_post(values) @ clip.visual.proj, dim=2)
    plain, free = (
        CLIPViT(**SIZES, state=vision_state(clip), double_cls_embed=False, last_block=method)
        for method in ("clip", "maskclip")
    )
    found = free(batch)["clip_dense"]
    assert (found.flatten(2).mT - values).abs().max() < 1e-5
    assert (found - plain(batch)["clip_dense"]).abs().max() > 0.1


def test_key_smoothing_by_brute_force() -> None:
    generator = torch.Generator().manual_seed(0)
    probability = torch.randn(2, 3, 2, 4, generator=generator).softmax(1)
    keys = torch.randn(2, 5, 2, 4, generator=generator)
    found = smooth_by_keys(probability, keys).double()
    p, k = probability.double().flatten(2), keys.double().flatten(2)
    for n in range(2):
        for i in range(8):
            total, expected = 0.0, torch.zeros(3, dtype=torch.double)
            for j in range(8):
                cosine = float(k[n, :, i] @ k[n, :, j] / (k[n, :, i].norm() * k[n, :, j].norm()))
                total += max(cosine, 0.0)
                expected += max(cosine, 0.0) * p[n, :, j]
            assert (found[n, :, i // 4, i % 4] - expected / total).abs().max() < 1e-6
    assert (found.sum(1) - 1).abs().max() < 1e-6 and found.min() >= 0


@pytest.mark.parametrize("smoothing", [False, True])
def test_a_score_is_a_probability(smoothing: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    dense = F.normalize(torch.randn(2, 8, 3, 3, generator=generator), dim=1)
    keys = torch.randn(2, 6, 3, 3, generator=generator)
    classes = F.normalize(torch.randn(5, 8, generator=generator), dim=1)
    head = TrainingFreeHead(scale=19.5, key_smoothing=smoothing)
    features = {"clip_dense": dense, "clip_keys": keys}
    (logits, trusty), losses = head(features, classes)
    assert (trusty, losses, logits.shape) == (None, {}, (2, 5, 3, 3))
    cosine = (classes.double() @ dense.double().flatten(2)).numpy()
    expected = np.exp(19.5 * cosine) / np.exp(19.5 * cosine).sum(1, keepdims=True)
    expected = torch.from_numpy(expected).view(2, 5, 3, 3)
    if smoothing:
        expected = smooth_by_keys(expected.float(), keys).double()
    assert (logits.double().sigmoid() - expected).abs().max() < 2e-6


def test_certainty_stays_finite() -> None:
    assert log_odds(torch.tensor([0.0, -1e-12])).sigmoid().tolist() == pytest.approx([1, 1])
    dense = F.normalize(torch.randn(1, 8, 2, 2), dim=1)
    (logits, _), _ = TrainingFreeHead(scale=100.0)({"clip_dense": dense}, torch.eye(8)[:1])
    assert logits.isfinite().all() and (logits.sigmoid() > 0.99).all()
    # One class stays as far below as its similarity says: no floor makes classes equal.
    found = log_odds(torch.tensor([-50.0, -60.0]))
    assert found.tolist() == pytest.approx([-50, -60])


def test_the_scale_is_that_of_the_weights(maskclip_cfg: CfgNode, tmp_path: Path) -> None:
    import_projects(["training_free"])
    state = dict(random_clip().state_dict()) | {"logit_scale": torch.tensor(3.0)}
    path = tmp_path / "clip.pt"
    torch.save(state, path)
    cfg = changed(maskclip_cfg, "MODEL.CLIP.PRETRAINED", str(path))
    assert float(build_model(cfg).sem_seg_head.scale) == pytest.approx(np.exp(3))
    del state["logit_scale"]
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"clip\.pt: found no logit_scale"):
        build_model(cfg)


def test_evaluation_needs_no_checkpoint(
    maskclip_cfg: CfgNode, train_net: ModuleType, tmp_path: Path
) -> None:
    path = write_run_config(maskclip_cfg, tmp_path)
    confusions = []
    for name, opts in (("plain", ()), ("smooth", SMOOTHING)):
        output = tmp_path / name
        arguments = run_arguments(path, "OUTPUT_DIR", output, *opts, eval_only=True)
        with own_loggers():
            results = train_net.main(arguments)
        (found,) = output.glob("inference/*/metrics.json")
        result = json.loads(found.read_text())
        assert result["metrics"]["mIoU"] == results["sem_seg"]["mIoU"] > 0
        assert (result["run"]["weights"], result["run"]["weights_sha256"]) == ("", None)
        confusions.append(np.array(result["confusion"]))
    assert confusions[0].sum() == confusions[1].sum() > 0
    assert (confusions[0] != confusions[1]).any()


def test_training_ends_in_one_line(
    maskclip_cfg: CfgNode, train_net: ModuleType, tmp_path: Path
) -> None:
    path = write_run_config(maskclip_cfg, tmp_path)
    with own_loggers(), pytest.raises(ConfigError, match="nothing to train.*--eval-only") as error:
        train_net.main(run_arguments(path, "OUTPUT_DIR", tmp_path / "run"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="TrainingFreeHead in training.*--eval-only"):
        TrainingFreeHead(scale=1.0)({}, torch.zeros(1, 1), targets=object())


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("MODEL.CLIP.PROMPT.NUM_TOKENS", 3), "LAST_BLOCK: found .*NUM_TOKENS 0"),
        (("MODEL.TAGCLIP.TRUSTY.ENABLED", True), "TRUSTY.KIND: found 'token' .*or ENABLED False"),
        (("MODEL.SEM_SEG_HEAD.IN_FEATURES", ["p2"]), r"IN_FEATURES: found \['p2'\]"),
        ((*SMOOTHING, "MODEL.CLIP.LAST_BLOCK", "clip"), "IN_FEATURES: .*LAST_BLOCK but clip"),
        (
            ("MODEL.BACKBONE.NAME", "CLIPViTValues", "MODEL.CLIP.PROMPT.NUM_TOKENS", 3),
            "LAST_BLOCK: found 'maskclip' .*NUM_TOKENS 0",
        ),
    ],
)
def test_what_does_not_fit_is_said(maskclip_cfg: CfgNode, opts: tuple, message: str) -> None:
    import_projects(["training_free"])
    with pytest.raises(ConfigError, match=message) as error:
        build_model(changed(maskclip_cfg, *opts))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", LEAVES, ids=lambda path: path.stem)
def test_shipped_configs_hold_nothing_to_train(path: Path, tiny_clip_json: str) -> None:
    is_minibench = "minibench" in path.stem
    small = [] if is_minibench else ["MODEL.CLIP.NAME", tiny_clip_json, "MODEL.CLIP.PRETRAINED", ""]
    cfg = load_config(path, ["MODEL.DEVICE", "cpu", *small])
    import_projects(cfg.PROJECTS)
    Protocol(cfg).check()
    model = build_model(cfg)
    assert trained_state(model) == {} and cfg.MODEL.WEIGHTS == ""
    test = cfg.MODEL.TAGCLIP.TEST
    assert (test.GATE, test.SEEN_BIAS) == ("none", 0.0)
    assert len(prompt_templates(cfg.MODEL.CLIP.TEMPLATES)) == (4 if is_minibench else 85)
    sizes = [len(Protocol(cfg).asked(name)) for name in cfg.DATASETS.TEST]
    assert sizes == {
        "voc": [20],
        "coco_stuff": [171],
        "context": [59],
        "cross_dataset": [20, 59, 60, 150],
        "large_vocabularies": [459, 847],
    }.get(path.stem.split("_vitb16_")[-1], [24])
    assert model.backbone.last_block == path.stem.split("_")[0]


def test_every_dataset_has_a_config() -> None:
    asked = {name for path in LEAVES for name in load_config(path).DATASETS.TEST}
    assert asked == {
        "voc2012_readable_val", "coco_stuff_readable_val", "pascal_context59_readable_val",
        "pascal_context60_readable_val", "pascal_context459_val", "ade20k150_val",
        "ade20k847_val", "minibench_test",
    }  # fmt: skip
    places = {"voc", "coco_stuff", "context", "minibench_composition"}
    for method in METHODS:
        names = {path.stem.removeprefix(f"{method}_").removeprefix("vitb16_") for path in LEAVES}
        assert places <= names


def test_a_list_of_templates_travels(tmp_path: Path) -> None:
    cfg = load_config(MINIBENCH)
    assert cfg.MODEL.CLIP.TEMPLATES[0] == "a photo of a {} and red thing"
    dumped = tmp_path / "config.yaml"
    dumped.write_text(cfg.dump())
    assert load_config(dumped).MODEL.CLIP.TEMPLATES == cfg.MODEL.CLIP.TEMPLATES
    assert load_config(MINIBENCH, ["MODEL.CLIP.TEMPLATES", "single"]).MODEL.CLIP.TEMPLATES == (
        "single"
    )
    listed = load_config("", ["MODEL.CLIP.TEMPLATES", "['a {}', 'the {}']"])
    assert listed.MODEL.CLIP.TEMPLATES == ["a {}", "the {}"]
    with pytest.raises(ConfigError, match="TEMPLATES"):
        load_config("", ["MODEL.CLIP.TEMPLATES", "3"])


@torch.no_grad()
def test_values_find_what_plain_clip_does_not() -> None:
    """The mini CLIP on six scenes of the validation set: pixels that get the right class."""
    cfg = load_config(MINIBENCH, ["MODEL.DEVICE", "cpu"])
    import_projects(cfg.PROJECTS)
    scenes = [scene("val", index) for index in range(6)]
    truth = torch.from_numpy(np.stack([drawn.label for drawn in scenes])).long()
    share = {}
    for name in ("clip", *METHODS):
        model = build_model(changed(cfg, "MODEL.CLIP.LAST_BLOCK", name)).eval()
        inputs = [{"image": to_tensor(drawn.image)} for drawn in scenes]
        labels = torch.stack([found["sem_seg_labels"] for found in model(inputs)])
        share[name] = float((labels == truth)[truth < 24].float().mean())
    assert share["maskclip"] > 0.4 > 2 * share["clip"]
    assert all(share[method] > 1.5 * share["clip"] for method in METHODS)


def to_tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image.transpose(2, 0, 1).copy())
