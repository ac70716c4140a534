"""The leak-free configs of the benchmarks: classes, stages, and what scales with the GPUs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tagclip import ZeroShotTrainer, load_config
from tagclip.data import Protocol
from tagclip.modeling.clip.text_bank import prompt_templates

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RECOMMENDED = sorted(CONFIGS.glob("*/tagclip_*.yaml"))
CONV, RELATIVE = "_convtrust", "_relative"
MAPS = {
    CONV: {"MODEL.TAGCLIP.TRUSTY.KIND": "conv", "MODEL.TAGCLIP.TEST.SEEN_BIAS": 0.0},
    RELATIVE: {
        "MODEL.TAGCLIP.TRUSTY.KIND": "relative",
        "MODEL.TAGCLIP.TEST.SEEN_BIAS": 0.0,
        "DATASETS.ZERO_SHOT.SKIP_UNSEEN_IMAGES": True,
    },
}


def map_of(path: Path) -> str:
    """End of the name of a config that says which trusty map it has; empty: the token or none."""
    return next((end for end in MAPS if path.stem.endswith(end)), "")


def test_every_dataset_has_every_setting() -> None:
    plain = [path for path in RECOMMENDED if not map_of(path)]
    assert len(plain) == 4 * 3
    conv, relative = (
        {path.stem.removesuffix(end) for path in RECOMMENDED if map_of(path) == end} for end in MAPS
    )
    assert conv == {path.stem for path in plain if not path.stem.endswith("supervised")}
    # It is made for the inductive setting alone.
    assert relative == {
        f"tagclip_vitb16_{name}_inductive" for name in ("voc", "coco_stuff", "context")
    }


@pytest.mark.parametrize("path", [p for p in RECOMMENDED if map_of(p)], ids=lambda path: path.stem)
def test_another_trusty_map_is_one_base_away(path: Path) -> None:
    end, found = map_of(path), load_config(path)
    expected = load_config(path.with_name(f"{path.stem.removesuffix(end)}.yaml"))
    weights = Path(expected.MODEL.WEIGHTS)
    if expected.MODEL.WEIGHTS:
        # It starts from a run with the same map.
        expected.MODEL.WEIGHTS = str(
            weights.parent.with_name(weights.parent.name + end) / weights.name
        )
    expected.CONFIG_NAME, expected.OUTPUT_DIR = path.name, f"output/{path.stem}"
    for key, value in MAPS[end].items():
        expected.merge_from_list([key, value])
    assert found == expected


@pytest.mark.parametrize("path", RECOMMENDED, ids=lambda path: path.stem)
def test_recommended_configs_read_no_unseen_label(path: Path) -> None:
    cfg = load_config(path)
    Protocol(cfg).check()
    assert not cfg.DATASETS.ZERO_SHOT.ALLOW_NOVEL_MASKS
    assert not Protocol(cfg).reads_novel_masks
    assert path.stem.removesuffix(map_of(path)).rpartition("_")[2] == cfg.DATASETS.ZERO_SHOT.SETTING
    counts = {"voc": (15, 20), "context": (49, 59)}.get(path.parent.name, (156, 171))
    setting, asked = cfg.DATASETS.ZERO_SHOT.SETTING, Protocol(cfg).training
    seen = sum(asked.seen)
    assert (seen, len(asked)) == {
        "inductive": (counts[0], counts[0]),
        "transductive": counts,
        "supervised": (counts[1], counts[1]),
    }[setting]
    prompts = prompt_templates(cfg.MODEL.CLIP.TEMPLATES)
    assert len(prompts) == (1 if path.parent.name == "voc" else 15)


def test_context_is_split_as_by_others() -> None:
    facts = json.loads((Path(__file__).parents[1] / "golden" / "hyperparameters.json").read_text())
    unseen_of_others = facts["unseen_classes"]["PASCAL Context (OTSeg, Cascade-CLIP)"]
    cfg = load_config(CONFIGS / "context" / "tagclip_vitb16_context_inductive.yaml")
    full = Protocol(cfg).asked("pascal_context59_val")
    unseen = [name for name, seen in zip(full.names, full.seen, strict=True) if not seen]
    assert sorted(unseen) == sorted(unseen_of_others)


@pytest.mark.parametrize("folder", ["voc", "coco-stuff", "context"])
def test_recommended_transductive_starts_from_half_of_the_inductive_run(folder: str) -> None:
    (first,) = (load_config(p) for p in (CONFIGS / folder).glob("*_inductive.yaml"))
    (second,) = (load_config(p) for p in (CONFIGS / folder).glob("*_transductive.yaml"))
    half = first.SOLVER.MAX_ITER // 2
    assert (half, half % first.SOLVER.CHECKPOINT_PERIOD) == (second.SOLVER.MAX_ITER, 0)
    assert f"{first.OUTPUT_DIR}/model_{half - 1:07d}.pth" == second.MODEL.WEIGHTS


@pytest.mark.parametrize("setting", ["inductive", "transductive", "supervised"])
def test_cross_dataset_run_asks_every_dataset_for_its_own_classes(setting: str) -> None:
    name = f"tagclip_vitb16_cross_dataset_{setting}.yaml"
    cfg = load_config(CONFIGS / "cross_dataset" / name)
    trained = load_config(CONFIGS / "coco-stuff" / f"tagclip_vitb16_coco_stuff_{setting}.yaml")
    assert f"{trained.OUTPUT_DIR}/model_final.pth" == cfg.MODEL.WEIGHTS
    assert Protocol(cfg).training == Protocol(trained).training
    sizes = [len(Protocol(cfg).asked(dataset)) for dataset in cfg.DATASETS.TEST]
    assert sizes == [20, 59, 60, 150]


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [(8, (16, 2e-4, 20000, 1500)), (4, (8, 1e-4, 40000, 3000)), (1, (2, 2.5e-5, 160000, 12000))],
)
def test_scaling_rule_of_the_base_config(gpus: int, expected: tuple) -> None:
    path = CONFIGS / "voc" / "tagclip_vitb16_voc_inductive.yaml"
    cfg = ZeroShotTrainer.auto_scale_workers(load_config(path), gpus)
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER) == (16, 20000)
    scaled = load_config(path, ["SOLVER.REFERENCE_WORLD_SIZE", 8])
    solver = ZeroShotTrainer.auto_scale_workers(scaled, gpus).SOLVER
    found = (solver.IMS_PER_BATCH, solver.BASE_LR, solver.MAX_ITER, solver.WARMUP_ITERS)
    assert found == pytest.approx(expected)
