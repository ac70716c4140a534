"""projects/ZegCLIP: every config is TagCLIP without token and self-attention, as released."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from golden import TRIMMED
from golden.models import GivenVectors, Workspace, load_trained, workspace
from golden.report import Golden, Report
from golden.training import check_pseudo_labels, check_step, run
from helpers.config_values import changed_keys, leaves

from tagclip import load_config
from tagclip.data import Protocol
from tagclip.projects import import_projects

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "projects" / "ZegCLIP" / "configs"
LEAVES = sorted(CONFIGS.glob("zegclip_*.yaml"))
FACTS = json.loads((Path(__file__).parents[1] / "golden" / "hyperparameters.json").read_text())
# ZegCLIP's focal weight; TagCLIP's configs have 20 (golden README, section 7).
MASK_WEIGHT = 100.0
FOLDERS = {
    "voc": "voc",
    "coco_stuff": "coco-stuff",
    "context": "context",
    "cross_dataset": "cross_dataset",
}
# What makes ZegCLIP of a model, and names of files.
OWN = {
    "MODEL.TAGCLIP.LAYERS",
    "MODEL.TAGCLIP.LOSS.MASK",
    "MODEL.TAGCLIP.TEST.GATE",
    "MODEL.TAGCLIP.TRUSTY.ENABLED",
    "CONFIG_NAME",
    "MODEL.WEIGHTS",
    "OUTPUT_DIR",
}


def zegclip(name: str) -> CfgNode:
    return load_config(CONFIGS / f"zegclip_{name}.yaml")


def test_every_dataset_has_every_setting() -> None:
    settings = ("inductive", "transductive", "supervised")
    expected = {f"zegclip_vitb16_{d}_{s}" for d in FOLDERS for s in settings}
    expected |= {f"zegclip_vitb16_{d}_transductive_novel" for d in list(FOLDERS)[:3]}
    splits = ("composition", "noun_fence_board", "noun_dice_board")
    expected |= {f"zegclip_minibench_{split}" for split in splits}
    assert {path.stem for path in LEAVES} == expected


@pytest.mark.parametrize("dataset", FOLDERS)
@pytest.mark.parametrize("setting", ["inductive", "transductive", "supervised"])
def test_only_the_method_differs_from_tagclip(dataset: str, setting: str) -> None:
    """Data, schedule, prompts and classes are those of TagCLIP's config of the same name."""
    name = f"vitb16_{dataset}_{setting}"
    cfg = zegclip(name)
    other = load_config(ROOT / "configs" / FOLDERS[dataset] / f"tagclip_{name}.yaml")
    assert changed_keys(cfg, other) <= OWN
    assert other.MODEL.WEIGHTS.replace("/tagclip_", "/zegclip_") == cfg.MODEL.WEIGHTS
    assert setting == cfg.DATASETS.ZERO_SHOT.SETTING and not Protocol(cfg).reads_novel_masks
    assert (
        0.1 if dataset != "cross_dataset" and setting != "transductive" else 0.0
    ) == cfg.MODEL.TAGCLIP.TEST.SEEN_BIAS


@pytest.mark.parametrize("facts", FACTS["configs"], ids=lambda f: f"{f['dataset']}-{f['setting']}")
def test_schedule_and_prompts_are_the_released_ones(facts: dict[str, Any]) -> None:
    """ZegCLIP's numbers are TagCLIP's, but for the focal weight and 4 x 4 images."""
    dataset = {"VOC12": "voc", "COCO-Stuff": "coco_stuff"}[facts["dataset"]]
    cfg = zegclip(f"vitb16_{dataset}_{facts['setting']}")
    assert (facts["iters"], 16) == (cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH)
    assert facts["num_prompt_tokens"] == cfg.MODEL.CLIP.PROMPT.NUM_TOKENS
    loss = cfg.MODEL.TAGCLIP.LOSS
    assert (MASK_WEIGHT, facts["dice_weight"]) == (loss.MASK, loss.DICE)


@pytest.mark.parametrize("dataset", ["voc", "coco_stuff", "context"])
def test_its_own_pseudo_label_rule_is_one_config_away(dataset: str) -> None:
    honest = zegclip(f"vitb16_{dataset}_transductive")
    novel = zegclip(f"vitb16_{dataset}_transductive_novel")
    assert changed_keys(honest, novel) == {
        "CONFIG_NAME",
        "OUTPUT_DIR",
        "DATASETS.ZERO_SHOT.ALLOW_NOVEL_MASKS",
        "MODEL.TAGCLIP.SELF_TRAINING.REGION",
    }
    assert Protocol(novel).reads_novel_masks


@pytest.mark.parametrize("path", LEAVES, ids=lambda path: path.stem)
def test_the_model_has_no_token_and_three_plain_layers(path: Path, tiny_clip_json: str) -> None:
    is_minibench = "minibench" in path.stem
    small = [] if is_minibench else ["MODEL.CLIP.NAME", tiny_clip_json, "MODEL.CLIP.PRETRAINED", ""]
    cfg = load_config(path, ["MODEL.DEVICE", "cpu", *small])
    import_projects(cfg.PROJECTS)
    Protocol(cfg).check()
    model = build_model(cfg)
    head = model.sem_seg_head
    assert (head.trusty_token, head.trusty_head, model.trusty_target) == (None, None, None)
    assert not [name for name, _ in head.named_parameters() if "self_attn" in name]
    assert len(head.decoder.layers) == 2 and head.decoder.logits is not None
    assert head.loss.mask_weight == (20.0 if is_minibench else MASK_WEIGHT)
    assert model.train_vocabulary == Protocol(cfg).training


@pytest.mark.parametrize("name", ["vitb16_voc_inductive", "minibench_noun_fence_board"])
def test_paths_work_from_the_repository_root(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    path = f"projects/ZegCLIP/configs/zegclip_{name}.yaml"
    assert load_config(path).MODEL.TAGCLIP.LAYERS == "nnn"


@pytest.fixture(scope="module")
def space() -> Iterator[Workspace]:
    with workspace(Golden(torch.load(TRIMMED, weights_only=True))) as opened:
        yield opened


def golden_model(space: Workspace, name: str) -> torch.nn.Module:
    """ZegCLIP's released weights in a model whose method keys are those of one of its configs."""
    cfg, keys = zegclip(name), ("LAYERS", "LOSS", "TRUSTY", "SELF_TRAINING", "TEST")
    # Of the golden file's size.
    others = ("TEST.WINDOW", "TEST.STRIDE", "TEST.OUTPUT")
    chosen = {
        f"MODEL.TAGCLIP.{key}".replace(".", "__"): value
        for key, value in leaves(cfg.MODEL.TAGCLIP)
        if key.split(".")[0] in keys and key not in others
    }
    cfg = space.config(**chosen, DATASETS__ZERO_SHOT__SETTING=cfg.DATASETS.ZERO_SHOT.SETTING)
    model = build_model(cfg).eval()
    names, vectors = space.vocabulary.names, space.golden.input("text_embedding")
    model.text_bank = GivenVectors(names, vectors)
    load_trained(model, space.zegclip)
    return model


def test_the_configs_compute_the_released_losses_and_gradients(space: Workspace) -> None:
    report, prefix = Report(space.golden), "trans_zegclip"
    model = golden_model(space, "vitb16_voc_transductive_novel")
    step = run(space, model, "label")
    check_pseudo_labels(space, model, prefix, step, report)
    check_step(space, model, prefix, step, report)
    keys = {key for key in space.golden.data if key.startswith(f"{prefix}/")}
    assert (report.failed, keys - report.compared) == ([], set())


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "key"),
    [("vitb16_voc_inductive", "st_False"), ("vitb16_coco_stuff_transductive", "st_True")],
)
def test_the_configs_compute_the_released_scores(space: Workspace, name: str, key: str) -> None:
    report, model = Report(space.golden), golden_model(space, name)
    images = space.golden.input("image")
    features = model.backbone(images)
    logits, _ = model.sem_seg_head.layers(features, model.text_bank(space.vocabulary))
    report.close("zegclip_eval/mask_logits_lowres", logits)
    size = tuple(images.shape[-2:])
    scores = [
        model.encode({"image": image}, space.vocabulary).scores(size)["sem_seg"] for image in images
    ]
    report.close(f"zegclip_eval/sem/{key}", torch.stack(scores))
    assert report.failed == []
