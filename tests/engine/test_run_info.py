"""What results say about their run: the same on every machine, no paths, what was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils.events import EventStorage
from helpers.tiny_run import changed, short_run, train, train_labels, write_tiny_dataset

from tagclip import load_config
from tagclip.checkpoint import load_trained, read_checkpoint
from tagclip.checkpoint.identity import (
    config_hash,
    stored_config_hash,
    tensors_sha256,
    training_record,
)
from tagclip.engine import run_info
from tagclip.engine.run_info import announce_schedule, announce_shared_images
from tagclip.engine.trainer import ZeroShotTrainer


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SEED", 7),
        ("OUTPUT_DIR", "elsewhere"),
        ("MODEL.WEIGHTS", "other/model_0000159.pth"),
        ("MODEL.DEVICE", "cuda:1"),
        ("DATALOADER.NUM_WORKERS", 3),
        ("CONFIG_NAME", "copy.yaml"),
        ("MODEL.CLIP.TEXT_CACHE", "/tmp/cache"),
        ("TEST.SAVE_PREDICTIONS", "png"),
    ],
)
def test_repetitions_have_the_same_hash(tiny_cfg: CfgNode, key: str, value: Any) -> None:
    other = changed(tiny_cfg, key, value)
    assert config_hash(other) == config_hash(tiny_cfg)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOLVER.BASE_LR", 0.1),
        ("MODEL.TAGCLIP.TEST.GATE", "none"),
        ("MODEL.CLIP.NAME", "/models/other.json"),
        ("TEST.AUG.ENABLED", True),
        ("DATASETS.ZERO_SHOT.SPLIT", "zs"),
    ],
)
def test_other_experiments_have_another_hash(tiny_cfg: CfgNode, key: str, value: Any) -> None:
    other = changed(tiny_cfg, key, value)
    assert config_hash(other) != config_hash(tiny_cfg)


def test_the_place_of_a_file_does_not_matter(tiny_cfg: CfgNode) -> None:
    folder_dataset = {"name": "a", "images": "/data/one/images", "labels": "/data/one/labels"}
    other_dataset = {"name": "a", "images": "/disk/two/images", "labels": "/disk/two/labels"}
    name = Path(tiny_cfg.MODEL.CLIP.NAME).name
    here, there = tiny_cfg.clone(), changed(tiny_cfg, "MODEL.CLIP.NAME", f"models/{name}")
    here.DATASETS.FOLDER_DATASETS = [folder_dataset]
    there.DATASETS.FOLDER_DATASETS = [other_dataset]
    assert config_hash(here) == config_hash(there)
    there.DATASETS.FOLDER_DATASETS = [other_dataset | {"name": "b"}]
    assert config_hash(here) != config_hash(there)


def test_openais_spelling_of_a_model_is_the_same_experiment(tiny_cfg: CfgNode) -> None:
    names = ("ViT-B-16", "ViT-B/16", "ViT-L/16")
    hashes = [config_hash(changed(tiny_cfg, "MODEL.CLIP.NAME", name)) for name in names]
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_record_has_the_config_and_no_paths(tiny_cfg: CfgNode, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(changed(tiny_cfg, "CONFIG_NAME", "").dump())
    cfg = load_config(path)
    record = run_info(cfg)
    assert (record["config"], record["config_hash"]) == ("mine.yaml", config_hash(tiny_cfg))
    assert len(record["config_hash"]) == 12
    assert record["synonyms"] == "mean" and record["test_augmentation"] is None
    assert str(tmp_path) not in json.dumps(record)
    # The config.yaml that a run writes keeps the name of the file that it came from.
    (tmp_path / "config.yaml").write_text(cfg.dump())
    assert load_config(tmp_path / "config.yaml").CONFIG_NAME == "mine.yaml"
    views = run_info(changed(cfg, "TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (64, 80)))
    assert views["test_augmentation"]["MIN_SIZES"] == (64, 80)
    assert record["reduced_jpeg"] is False
    assert run_info(changed(cfg, "INPUT.REDUCED_JPEG", True))["reduced_jpeg"] is True


@pytest.mark.parametrize(
    ("opts", "expected"),
    [
        ({}, None),
        ({"BACKGROUND_MISS_RATE": 0.2}, None),
        ({"BACKGROUND_THRESHOLD": 0.3}, "threshold 0.3"),
        ({"BACKGROUND": "auto"}, "auto, miss rate 0.05"),
        (
            {"BACKGROUND": "auto", "BACKGROUND_MISS_RATE": 0.2, "BACKGROUND_THRESHOLD": 0.3},
            "auto, miss rate 0.2, threshold 0.3",
        ),
    ],
)
def test_the_record_says_what_leaves_pixels_without_a_class(
    tiny_cfg: CfgNode, opts: dict[str, object], expected: str | None
) -> None:
    pairs = [part for key, value in opts.items() for part in (f"MODEL.TAGCLIP.TEST.{key}", value)]
    assert run_info(changed(tiny_cfg, *pairs))["background"] == expected


def test_the_record_says_how_long_the_run_has_trained(tiny_cfg: CfgNode) -> None:
    assert run_info(tiny_cfg)["iterations"] is None
    with EventStorage(9):
        assert run_info(tiny_cfg)["iterations"] == 10
    with EventStorage(tiny_cfg.SOLVER.MAX_ITER):
        assert run_info(tiny_cfg)["iterations"] == tiny_cfg.SOLVER.MAX_ITER
        # A run that has trained for longer than it is asked for now.
        shorter = changed(tiny_cfg, "SOLVER.MAX_ITER", 2)
        assert run_info(shorter)["iterations"] == tiny_cfg.SOLVER.MAX_ITER


def test_a_schedule_that_is_hardly_meant_is_said(
    tiny_cfg: CfgNode, caplog: pytest.LogCaptureFixture
) -> None:
    (name,) = tiny_cfg.DATASETS.TRAIN
    steps = ("SOLVER.MAX_ITER", 4, "SOLVER.WARMUP_ITERS")
    announce_schedule(changed(tiny_cfg, *steps, 3))
    assert not caplog.messages
    announce_schedule(changed(tiny_cfg, *steps, 4, "DATASETS.TRAIN", (name, "b", name)))
    assert caplog.messages == [
        "SOLVER.WARMUP_ITERS: found 4 with SOLVER.MAX_ITER 4, expected fewer: the learning rate "
        "rises to the end",
        f"DATASETS.TRAIN: found {name} 2 times: so often come its images in each round",
    ]


def test_training_names_the_images_that_it_is_evaluated_on(
    tiny_cfg: CfgNode, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_tiny_dataset(tmp_path)
    train_set = DatasetCatalog.get(tiny_cfg.DATASETS.TRAIN[0])
    announce_shared_images(train_set, tiny_cfg.DATASETS.TEST)
    assert not caplog.records
    train, val = tmp_path / "images" / "train", tmp_path / "images" / "val"
    (val / "1.png").write_bytes((train / "4.png").read_bytes())
    announce_shared_images(train_set, tiny_cfg.DATASETS.TEST)
    (line,) = [record.getMessage() for record in caplog.records]
    assert (
        f"1 of its 3 images are training images, too ({val / '1.png'} is {train / '4.png'})" in line
    )


@pytest.mark.parametrize("kind", ["token", "conv", "relative"])
def test_a_training_s_result_is_of_the_tensors_and_config_of_its_checkpoint(
    kind: str, tiny_cfg: CfgNode, tmp_path: Path
) -> None:
    """Whatever part of the model is fitted apart from the others."""
    opts = ("SOLVER.MAX_ITER", 2, "DATASETS.TEST", tiny_cfg.DATASETS.TEST)
    cfg = short_run(tiny_cfg, tmp_path, *opts, "MODEL.TAGCLIP.TRUSTY.KIND", kind)
    train(cfg)
    (file,) = Path(cfg.OUTPUT_DIR).glob("inference/*/metrics.json")
    run = json.loads(file.read_text())["run"]
    path = Path(cfg.OUTPUT_DIR) / "model_final.pth"
    saved = read_checkpoint(path)
    assert run["trained_sha256"] == tensors_sha256(saved["model"])
    assert run["config_hash"] == stored_config_hash(saved["tagclip"]["config"], path.parent)
    # One value, type or name.
    name, tensor = next(iter(saved["model"].items()))
    for change in ({name: tensor + 1}, {name: tensor.half()}, {"other": tensor}):
        assert tensors_sha256(saved["model"] | change) != run["trained_sha256"]


def test_a_result_says_how_its_weights_were_trained(tiny_cfg: CfgNode, tmp_path: Path) -> None:
    """The same after the training and from its file, whatever the config of the evaluation."""
    names = tiny_cfg.DATASETS.TEST
    cfg = short_run(tiny_cfg, tmp_path, "SOLVER.MAX_ITER", 2, "DATASETS.TEST", names)
    train(cfg)
    first = _only_run(cfg)
    path = Path(cfg.OUTPUT_DIR) / "model_final.pth"
    saved = read_checkpoint(path)["tagclip"]
    assert (first["iterations"], first["training_files"]) == (2, saved["training_files"])
    for opts in (("SOLVER.BASE_LR", 0.1), ("MODEL.TAGCLIP.TEST.GATE", "none")):
        other = changed(cfg, "OUTPUT_DIR", str(tmp_path / opts[0]), *opts)
        ZeroShotTrainer.test(other, load_trained(other, str(path)))
        run = _only_run(other)
        assert (run["iterations"], run["trained_iterations"]) == (None, 2)
        assert all(run[key] == first[key] for key in ("trained_config", "training_files"))
    # Of a training that reads another image.
    train_labels(tmp_path)[0].unlink()
    next((tmp_path / "images" / "train").glob("0.*")).unlink()
    fewer = changed(cfg, "OUTPUT_DIR", str(tmp_path / "fewer"), "SEED", cfg.SEED + 1)
    train(fewer)
    run = _only_run(fewer)
    assert run["trained_config"] == first["trained_config"]
    assert run["training_files"] != first["training_files"]


def test_of_a_training_s_config_counts_what_changes_weights(tiny_cfg: CfgNode) -> None:
    def digits(*opts: Any, drop: str = "") -> str:
        tree = yaml.safe_load(changed(tiny_cfg, *opts).dump())
        if drop:
            section, key = drop.split(".")
            del tree[section][key]
        return training_record({"config": yaml.safe_dump(tree)}, Path())["trained_config"]

    # Of another dataset that is described beside, as for a test.
    described = [{"name": "mine", "images": "./i", "labels": "./l", "vocabulary": "./v.json"}]
    for opts in (
        ("SEED", 7),
        ("MODEL.TAGCLIP.TEST.GATE", "none"),
        ("DATASETS.TEST", ()),
        ("DATASETS.FOLDER_DATASETS", described),
    ):
        assert digits(*opts) == digits()
    # A version before the key wrote it.
    assert digits(drop="SOLVER.ACCUMULATE") == digits(drop="SOLVER.NESTEROV") == digits()
    for opts in (("SOLVER.BASE_LR", 0.1), ("SOLVER.MAX_ITER", 7), ("SOLVER.NESTEROV", True)):
        assert digits(*opts) != digits()
    assert training_record({}, Path()) == {}


def _only_run(cfg: CfgNode) -> dict[str, Any]:
    (file,) = Path(cfg.OUTPUT_DIR).glob("inference/*/metrics.json")
    return json.loads(file.read_text())["run"]
