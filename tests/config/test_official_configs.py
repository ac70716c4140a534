"""configs/official holds the released protocol; tests/golden/hyperparameters.json has its facts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from helpers.config_values import changed_keys, leaves

from tagclip import load_config
from tagclip.data import Protocol
from tagclip.data.inference_input import build_test_augmentations
from tagclip.solver.optimizer import build_optimizer

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FACTS = json.loads((Path(__file__).parents[1] / "golden" / "hyperparameters.json").read_text())
DATASETS = {"VOC12": "voc12", "COCO-Stuff": "coco"}
TEMPLATES = {
    "voc12_single.npy": "single",
    "coco_multi.npy": "zegclip15",
    "context_multi.npy": "zegclip15",
}
GATES = {False: "none", True: "both"}
SEEN_BIAS = FACTS["common"]["inference_seen_bias"]
# Ten times as wide as high: nothing limits the long side of a test image.
STRIP = np.zeros((100, 1000, 3), np.uint8)


def official(name: str) -> CfgNode:
    return load_config(CONFIGS / "official" / f"{name}.yaml")


def training_name(facts: dict[str, Any]) -> str:
    return f"{DATASETS[facts['dataset']]}_{facts['setting']}"


def values(cfg: CfgNode, keys: Iterable[str]) -> dict[str, Any]:
    found = dict(leaves(cfg))
    found = {key: found[key] for key in keys}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in found.items()}


def test_every_official_config_is_checked_here() -> None:
    training = [training_name(facts) for facts in FACTS["configs"]]
    evaluation = [facts["name"].replace("/", "_") for facts in FACTS["evaluation_configs"]]
    cross = [f"coco_to_{facts['target']}" for facts in FACTS["cross_dataset_configs"]]
    found = {path.stem for path in (CONFIGS / "official").glob("*.yaml")}
    assert {name for name in found if not name.startswith("Base-")} == {
        *training,
        *evaluation,
        *cross,
    }


@pytest.mark.parametrize("facts", FACTS["configs"], ids=training_name)
def test_training_config_has_the_released_values(facts: dict[str, Any]) -> None:
    assert facts["total_batch"] == facts["gpus_in_script"] * facts["samples_per_gpu"]
    self_training = "true" if facts["setting"] == "transductive" else "false"
    expected = {
        "DATASETS.ZERO_SHOT.SETTING": facts["setting"],
        "SOLVER.MAX_ITER": facts["iters"],
        "SOLVER.CHECKPOINT_PERIOD": facts["iters"] // 2,
        "SOLVER.IMS_PER_BATCH": facts["total_batch"],
        "MODEL.CLIP.PROMPT.NUM_TOKENS": facts["num_prompt_tokens"],
        "MODEL.CLIP.TEMPLATES": TEMPLATES[facts["text_embedding"]],
        "MODEL.TAGCLIP.LOSS.MASK": facts["mask_weight_focal"],
        "MODEL.TAGCLIP.LOSS.DICE": facts["dice_weight"],
        "MODEL.TAGCLIP.TRUSTY.ENABLED": facts["discriminate"],
        "MODEL.TAGCLIP.TEST.GATE": GATES[facts["eval_disc_weight"]],
        "MODEL.TAGCLIP.TEST.SEEN_BIAS": SEEN_BIAS[f"self_training_{self_training}"],
    }
    if facts["disc_weight"] is not None:
        expected["MODEL.TAGCLIP.LOSS.TRUSTY"] = facts["disc_weight"]
    assert values(official(training_name(facts)), expected) == expected


@pytest.mark.parametrize("facts", FACTS["configs"], ids=training_name)
def test_classes_have_the_released_partition_and_spelling(facts: dict[str, Any]) -> None:
    cfg = official(training_name(facts))
    Protocol(cfg).check()
    asked, full = Protocol(cfg).training, Protocol(cfg).asked(cfg.DATASETS.TEST[0])
    assert len(asked) == facts["head_num_classes"]
    unseen = [] if facts["setting"] == "supervised" else FACTS["unseen_classes"][facts["dataset"]]
    assert sorted(n for n, s in zip(full.names, full.seen, strict=True) if not s) == sorted(unseen)
    # One name each goes into the templates, that of the released text files.
    assert full.prompts == [(name,) for name in full.names]
    assert {"VOC12": "diningtable", "COCO-Stuff": "wall-concrete"}[facts["dataset"]] in full.names


@pytest.mark.parametrize("facts", FACTS["configs"], ids=training_name)
def test_unseen_positions_are_read_as_released(facts: dict[str, Any]) -> None:
    """Target 1 on unseen pixels; pseudo-labels on them in the second stage."""
    cfg = official(training_name(facts))
    assert cfg.MODEL.TAGCLIP.TRUSTY.TARGET == "novel"
    assert cfg.MODEL.TAGCLIP.SELF_TRAINING.REGION == "novel"
    assert Protocol(cfg).reads_novel_masks is (
        facts["discriminate"] or facts["setting"] == "transductive"
    )


@pytest.mark.parametrize("dataset", ["voc12", "coco"])
def test_transductive_starts_from_half_of_the_inductive_run(dataset: str) -> None:
    facts = next(f for f in FACTS["configs"] if training_name(f) == f"{dataset}_transductive")
    first, second = official(f"{dataset}_inductive"), official(f"{dataset}_transductive")
    iterations = int(facts["load_from"].removesuffix(".pth").rpartition("_")[2])
    solver = first.SOLVER
    assert (solver.MAX_ITER / iterations, iterations % solver.CHECKPOINT_PERIOD) == (2, 0)
    # detectron2 counts from 0.
    assert f"{first.OUTPUT_DIR}/model_{iterations - 1:07d}.pth" == second.MODEL.WEIGHTS


@pytest.mark.parametrize("facts", FACTS["evaluation_configs"], ids=lambda facts: facts["name"])
def test_evaluation_config_only_turns_the_gate_on(facts: dict[str, Any]) -> None:
    name = facts["name"].replace("/", "_")
    trained, cfg = official(name.removesuffix("_eval")), official(name)
    assert GATES[facts["eval_disc_weight"]] == cfg.MODEL.TAGCLIP.TEST.GATE
    changed = {"CONFIG_NAME", "OUTPUT_DIR", "MODEL.WEIGHTS", "MODEL.TAGCLIP.TEST.GATE"}
    assert changed_keys(trained, cfg) == changed
    assert f"{trained.OUTPUT_DIR}/model_final.pth" == cfg.MODEL.WEIGHTS


@pytest.mark.parametrize("facts", FACTS["cross_dataset_configs"], ids=lambda f: f["target"])
def test_cross_dataset_config_has_the_released_values(facts: dict[str, Any]) -> None:
    trained, cfg = official("coco_inductive"), official(f"coco_to_{facts['target']}")
    Protocol(cfg).check()
    assert facts["load_from"].endswith(f"iter_{trained.SOLVER.MAX_ITER}.pth")
    assert f"{trained.OUTPUT_DIR}/model_final.pth" == cfg.MODEL.WEIGHTS
    expected = {
        "MODEL.CLIP.PROMPT.NUM_TOKENS": facts["num_prompt_tokens"],
        "MODEL.CLIP.TEMPLATES": TEMPLATES[facts["text_embedding"]],
        "MODEL.TAGCLIP.TRUSTY.ENABLED": facts["discriminate"],
        "MODEL.TAGCLIP.TEST.GATE": GATES[facts["eval_disc_weight"]],
        "MODEL.TAGCLIP.TEST.SEEN_BIAS": SEEN_BIAS["self_training_true"],
    }
    assert facts["self_training"]
    assert values(cfg, expected) == expected
    (dataset,) = cfg.DATASETS.TEST
    vocabulary = Protocol(cfg).asked(dataset)
    assert (sum(vocabulary.seen), len(vocabulary)) == (facts["seen"], facts["seen"])
    assert ("background" in vocabulary.names) is (facts["target"] == "context")
    assert Protocol(cfg).training == Protocol(trained).training


@pytest.mark.parametrize("path", sorted((CONFIGS / "official").glob("[a-z]*.yaml")), ids=str)
def test_common_values(path: Path) -> None:
    common = FACTS["common"]
    train, test, losses = common["augmentation_train"], common["test"], common["losses"]
    backbone, decoder = common["backbone"], common["decoder"]
    long, short = train["img_scale"]
    expected = {
        "INPUT.MIN_SIZE_TRAIN": [short],
        "INPUT.MAX_SIZE_TRAIN": long,
        "INPUT.SCALE_RANGE": train["ratio_range"],
        "INPUT.CROP.ENABLED": True,
        "INPUT.CROP.TYPE": "absolute",
        "INPUT.CROP.SIZE": train["crop_size"],
        "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": train["cat_max_ratio"],
        "INPUT.COLOR_AUG_SSD": train["photometric_distortion"],
        "INPUT.RANDOM_FLIP": "horizontal",
        "INPUT.RESIZE": "cv2",
        "INPUT.FORMAT": "RGB" if train["to_rgb"] else "BGR",
        "INPUT.MIN_SIZE_TEST": test["min_size"],
        "MODEL.PIXEL_MEAN": train["mean"],
        "MODEL.PIXEL_STD": train["std"],
        "MODEL.CLIP.NAME": "ViT-B-16-quickgelu",
        "MODEL.CLIP.PRETRAINED": "openai",
        "MODEL.CLIP.DOUBLE_CLS_EMBED": backbone["class_embedding_added"] == 2,
        "MODEL.CLIP.POS_EMBED_RESIZE": backbone["pos_embed_resize"],
        "MODEL.CLIP.PROMPT.DEPTH": 0,  # all layers
        "MODEL.CLIP.PROMPT.DROPOUT": backbone["prompt_dropout"],
        "MODEL.CLIP.PROMPT.POST_NORM": True,
        "MODEL.TAGCLIP.RELATION": "cls_text",
        "MODEL.TAGCLIP.FEATURE_SCALE": 1.0,
        "MODEL.TAGCLIP.LAYERS": decoder["operator"].replace("_", ""),
        "MODEL.TAGCLIP.NUM_HEADS": decoder["heads"],
        "MODEL.TAGCLIP.DROPOUT": decoder["dropout"],
        "MODEL.TAGCLIP.LOSS.FOCAL_ALPHA": losses["focal_alpha"],
        "MODEL.TAGCLIP.LOSS.FOCAL_GAMMA": losses["focal_gamma"],
        "MODEL.TAGCLIP.LOSS.IGNORE_AS_NEGATIVE": losses["ignored_pixels_are_negatives"],
        "MODEL.TAGCLIP.LOSS.STRIDE": 1,
        "MODEL.TAGCLIP.TEST.MODE": test["mode"],
        "MODEL.TAGCLIP.TEST.WINDOW": test["crop_size"][0],
        "MODEL.TAGCLIP.TEST.STRIDE": test["stride"][0],
        "MODEL.TAGCLIP.TEST.BIAS_AFTER_GATE": False,
    }
    cfg = load_config(path)
    assert values(cfg, expected) == expected
    sizes = [size for t in build_test_augmentations(cfg) for size in [t.get_transform(STRIP)]]
    assert [(size.new_height, size.new_width) for size in sizes] == [(512, 5120)]


def test_optimizer_and_schedule_are_the_released_ones(tiny_clip_json: str) -> None:
    facts, schedule = FACTS["common"]["optimizer"], FACTS["common"]["lr_schedule"]
    small = ["MODEL.DEVICE", "cpu", "MODEL.CLIP.NAME", tiny_clip_json, "MODEL.CLIP.PRETRAINED", ""]
    cfg = load_config(CONFIGS / "official" / "voc12_inductive.yaml", small)
    expected = {
        "SOLVER.CLIP_GRADIENTS.ENABLED": facts["grad_clip"] is not None,
        "SOLVER.AMP.ENABLED": facts["amp"],
        "SOLVER.LR_SCHEDULER_NAME": {"poly": "WarmupPolyLR"}[schedule["policy"]],
        "SOLVER.POLY_LR_POWER": schedule["power"],
        "SOLVER.MIN_LR": schedule["min_lr"],
        "SOLVER.WARMUP_ITERS": schedule["warmup_iters"],
        "SOLVER.WARMUP_FACTOR": schedule["warmup_ratio"],
    }
    assert values(cfg, expected) == expected
    optimizer = build_optimizer(cfg, build_model(cfg))
    assert type(optimizer).__name__ == facts["type"]
    expected = {
        "lr": facts["effective_lr"],
        "weight_decay": facts["weight_decay"],
        "betas": tuple(facts["betas"]),
        "eps": facts["eps"],
    }
    for group in optimizer.param_groups:
        assert {key: group[key] for key in ("lr", "weight_decay", "eps")} | {
            "betas": tuple(group["betas"])
        } == expected
