"""A class list without splits: looked at, trained and scored, the last two with one line more."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from detectron2.config import CfgNode
from helpers.tiny_run import NAMES, changed, load_tool, run_arguments, tiny_tree, write_tiny_dataset
from helpers.toy_dataset import forget, write_json

from tagclip.errors import ConfigError


@pytest.fixture
def config(tiny_cfg: CfgNode, tmp_path: Path) -> Iterator[Path]:
    """Config file of a training of two steps on folders."""
    write_tiny_dataset(tmp_path)
    vocabulary = write_json(tmp_path / "open.json", tiny_tree(splits={}, default_split=""))
    names = {subset: f"open_{subset}_{tmp_path.name}" for subset in ("train", "val")}
    entries = [
        {
            "name": name,
            "images": f"{tmp_path}/images/{subset}",
            "labels": f"{tmp_path}/labels/{subset}",
            "vocabulary": str(vocabulary),
        }
        for subset, name in names.items()
    ]
    cfg = changed(
        tiny_cfg,
        "DATASETS.FOLDER_DATASETS", entries,
        "DATASETS.TRAIN", (names["train"],),
        "DATASETS.TEST", (names["val"],),
        "SOLVER.MAX_ITER", 2,
        "SOLVER.IMS_PER_BATCH", 2,
        "SOLVER.WARMUP_ITERS", 1,
    )  # fmt: skip
    path = tmp_path / "config.yaml"
    path.write_text(cfg.dump())
    yield path
    forget(*names.values())


def test_looking_at_the_data_needs_no_split(
    repository: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    validate, visualize = (
        load_tool(repository / "tools" / f"{name}.py")
        for name in ("validate_dataset", "visualize_data")
    )
    output = str(tmp_path / "out")
    words = ["--config-file", str(config), "--output", output, "--workers", "0"]
    assert validate.main(validate.parse_args(words)) == 0
    reports = [json.loads(path.read_text()) for path in Path(output).rglob("report.json")]
    assert len(reports) == 2
    for report in reports:
        assert [entry["name"] for entry in report["classes"]] == NAMES
        assert report["shares"].keys() == {"labelled", "ignored", "unknown"}
    words = ["--config-file", str(config), "--output", output, "--num", "1"]
    visualize.main(visualize.parse_args(words))
    assert (tmp_path / "out" / "000000.png").is_file()
    printed = capsys.readouterr().out
    assert "supervised, 5 classes, all with labels" in printed
    assert "(so shown: no split says which classes are unseen)" in printed
    setup = visualize.read_setup(str(config), [])
    assert setup.trained.names == NAMES and not setup.full.unseen_names


def test_training_and_evaluation_name_the_line_and_take_it(
    train_net: ModuleType, config: Path, tmp_path: Path
) -> None:
    line = line_to_add(train_net, config)
    trained = train_net.main(run_arguments(config, *line))["sem_seg"]
    (path,) = (tmp_path / "output").glob("inference/*/metrics.json")
    metrics = json.loads(path.read_text())["metrics"]
    assert metrics["mIoU"] == metrics["mIoU-seen"] and metrics["mIoU-unseen"] is None
    log = (tmp_path / "output" / "log.txt").read_text()
    assert "Protocol: supervised, 5 classes, all with labels" in log
    weights = ("MODEL.WEIGHTS", tmp_path / "output" / "model_final.pth")
    again = (*weights, "OUTPUT_DIR", tmp_path / "again")
    assert line_to_add(train_net, config, *again, eval_only=True) == line
    tested = train_net.main(run_arguments(config, *line, *again, eval_only=True))
    assert tested["sem_seg"]["mIoU"] == trained["mIoU"] == metrics["mIoU"]


def line_to_add(train_net: ModuleType, config: Path, *opts: Any, **options: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        train_net.main(run_arguments(config, *opts, **options))
    found = re.search(r"set (DATASETS\.ZERO_SHOT\.SETTING) (\w+);", str(caught.value))
    assert found is not None
    return found.groups()
