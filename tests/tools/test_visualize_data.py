"""Pages of the training data show exactly what training gets, and nothing that it must not."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from detectron2.config import CfgNode
from helpers.pages import find
from helpers.tiny_run import VOID, changed, exit_of, load_tool, write_tiny_dataset
from PIL import Image

from tagclip import ZeroShotTrainer
from tagclip.errors import ConfigError
from tagclip.utils.cli import run_tool
from tagclip.visualization.panels import draw_heading, fit
from tagclip.visualization.segments import colorize_trusty, draw_segments

UNSEEN = [1, 3]
NOVEL = ["DATASETS.ZERO_SHOT.ALLOW_NOVEL_MASKS", True, "MODEL.TAGCLIP.TRUSTY.TARGET", "novel"]
TRANSDUCTIVE = ["DATASETS.ZERO_SHOT.SETTING", "transductive"]


@pytest.fixture
def tool(repository: Path) -> ModuleType:
    return load_tool(repository / "tools" / "visualize_data.py")


@pytest.fixture
def config(tiny_cfg: CfgNode, tmp_path: Path) -> Path:
    """Config file of a training of five steps on four images."""
    write_tiny_dataset(tmp_path, train=4)
    path = tmp_path / "config.yaml"
    path.write_text(changed(tiny_cfg, "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 5).dump())
    return path


def setup(tool: ModuleType, config: Path, *opts: Any) -> Any:
    return tool.read_setup(config, [str(value) for value in opts])


def test_sample_i_is_sample_i_of_the_training(tool: ModuleType, config: Path) -> None:
    found = setup(tool, config)
    batches = ZeroShotTrainer.build_train_loader(found.cfg)
    trained = [sample for batch in batches for sample in batch]
    assert len(trained) == 10
    for position, expected in enumerate(trained):
        sample = found.loader.sample(position)
        assert (sample["image"] == expected["image"]).all()
        assert (sample["sem_seg"] == expected["sem_seg"]).all()
        assert found.loader.source(position)["file_name"] == expected["file_name"]
    files = [sample["file_name"] for sample in trained]
    for start in range(4):
        # Four images: an epoch is four positions.
        assert found.loader.positions(start, 2) == [start, 4 + files[4:8].index(files[start])]


@pytest.mark.parametrize("opts", [[], TRANSDUCTIVE], ids=["inductive", "transductive"])
def test_labels_of_unseen_classes_are_gone(tool: ModuleType, config: Path, opts: list[Any]) -> None:
    found, unseen = setup(tool, config, *opts), 0
    for position in range(4):
        _, truth = tool.read_files(found, position)
        file = np.array(Image.open(found.loader.source(position)["sem_seg_file_name"])).astype(int)
        assert (truth == np.where(file == VOID, -1, file)).all()
        unseen += np.isin(truth, UNSEEN).sum()
        _, labels = tool.sample_arrays(found, found.loader.sample(position))
        assert not np.isin(labels, UNSEEN).any() and (labels >= 0).any()
    assert unseen > 0
    assert found.full.unseen_names == ["dog", "sky"]


def test_images_that_training_refuses_are_not_shown(tool: ModuleType, config: Path) -> None:
    with pytest.raises(ConfigError, match="SCALE_RANGE: found .* with INPUT.MIN_SIZE_TRAIN"):
        setup(tool, config, "INPUT.SCALE_RANGE", [0.01, 0.01])


def test_labels_keep_their_class_and_unseen_ones_are_ignored(
    tool: ModuleType, config: Path
) -> None:
    found = setup(tool, config)
    # Every pixel can be compared with the file.
    found.loader._stream._mapper.augmentations.augs = []
    for position in range(4):
        image, labels = tool.sample_arrays(found, found.loader.sample(position))
        file_image, truth = tool.read_files(found, position)
        assert (image == file_image).all()
        assert (labels == np.where(np.isin(truth, UNSEEN), -1, truth)).all()


def test_bgr_is_shown_in_its_true_colours(tool: ModuleType, config: Path) -> None:
    plain = ["INPUT.COLOR_AUG_SSD", False]
    rgb, bgr = (setup(tool, config, *plain, "INPUT.FORMAT", kind) for kind in ("RGB", "BGR"))
    for position in range(3):
        pair = [tool.sample_arrays(each, each.loader.sample(position))[0] for each in (rgb, bgr)]
        assert (pair[0] == pair[1]).all()


@pytest.mark.parametrize(
    ("opts", "titles"),
    [
        ([], ["seen"]),
        (NOVEL, ["novel"]),
        (["MODEL.TAGCLIP.TRUSTY.ENABLED", False], []),
        ([*TRANSDUCTIVE, "MODEL.TAGCLIP.SELF_TRAINING.REGION", "novel", *NOVEL[:2]],
         ["seen", "novel"]),
        (TRANSDUCTIVE, ["seen"]),
    ],
    ids=["inductive", "novel", "no token", "novel region", "transductive"],
)  # fmt: skip
def test_the_page_holds_the_sample_and_its_targets(
    tool: ModuleType, config: Path, opts: list[Any], titles: list[str]
) -> None:
    found = setup(tool, config, *opts)
    sample = found.loader.sample(1)
    assert ("novel_mask" in sample) == ("novel" in titles)
    image, labels = tool.sample_arrays(found, sample)
    page, side = tool.draw_page(found, [1]), tool.PANEL_SIZE
    picture = fit(image, side)
    segments = draw_segments(picture, fit(labels, side), found.full, alpha=0.8)
    targets = {"seen": labels >= 0}
    if "novel" in titles:
        targets["novel"] = sample["novel_mask"].numpy()
    masks = [colorize_trusty(fit(targets[kind].astype(float), side)) for kind in titles]
    height, width = picture.shape[:2]
    # The file above the sample may be wider.
    step = max(width, fit(tool.read_files(found, 1)[0], side).shape[1]) + 8
    (top, left), *_ = (
        (y, x)
        for y, x in find(page, picture[:9, :9])
        if np.array_equal(page[y : y + height, x : x + width], picture)
    )
    for column, panel in enumerate([picture, segments, *masks]):
        x = left + min(column, 2) * step + max(column - 2, 0) * (width + 8)
        assert (page[top : top + height, x : x + width] == panel).all()
    heading = draw_heading("Sample", [found.protocol], page.shape[1])
    assert (page[26 : len(heading)] == heading[26:]).all()


def test_pages_are_written_and_the_same_every_time(
    tool: ModuleType, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def pages(folder: Path) -> dict[str, bytes]:
        options = ["--config-file", str(config), "--num", "2", "--draws", "2"]
        tool.main(tool.parse_args([*options, "--output", str(folder)]))
        return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}

    first = pages(tmp_path / "a")
    assert list(first) == ["000000.png", "000001.png"] and first == pages(tmp_path / "b")
    assert first["000000.png"] != first["000001.png"]
    assert "Protocol: inductive, split zs: 3 seen / 2 unseen" in capsys.readouterr().out


def test_a_row_says_where_its_sample_comes(tool: ModuleType, config: Path) -> None:
    cfg, labels = setup(tool, config).cfg, np.array([[0, -1, -1, 2]])
    text = "4 x 1 pixels, 50 % ignored"
    assert tool.row_title(cfg, 9, labels) == f"sample 9 (iteration 4): {text}"
    never = "never: training ends before iteration 5"
    assert tool.row_title(cfg, 10, labels) == f"sample 10 ({never}): {text}"


def test_mistakes_are_one_line(tool: ModuleType, config: Path, tmp_path: Path) -> None:
    def message(*opts: str) -> str:
        args = ["--config-file", str(config), "--output", str(tmp_path / "out"), *opts]
        text = str(exit_of(run_tool, tool.main, tool.parse_args(args)))
        assert "\n" not in text and not (tmp_path / "out").exists()
        return text

    assert "SEED: found -1, expected 0 to 2**32 - 1; a seed that" in message("SEED", "-1")
    assert "DatasetError: dataset 'none'" in message("DATASETS.TRAIN", "('none',)")
    assert "breaks the inductive protocol" in message("MODEL.TAGCLIP.TRUSTY.TARGET", "novel")
    with pytest.raises(SystemExit):
        tool.parse_args(["--config-file", "x", "--num", "0"])


def test_a_heading_never_leaves_the_page() -> None:
    text = "Protocol: inductive, split one: 16 seen / 8 unseen; labels dropped in the mapper"
    for width in range(90, 700, 45):
        page = draw_heading(text, [text, "iiiii lllll " * 20], width)
        assert page.shape[1] == width and (page[:, -4:] == 255).all() and (page[-4:] == 255).all()
