"""The pixel statistics that come with CLIP's weights are logged and recorded."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import open_clip
import pytest
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from helpers.clip_files import FORMATS, random_clip, write_json
from helpers.tiny_run import changed

from tagclip.checkpoint import checkpoint_metadata
from tagclip.engine import run_info
from tagclip.errors import TagCLIPError
from tagclip.modeling.clip import CLIPSource, source

OPENAI = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
IN_BYTES = ([122.771, 116.746, 104.094], [68.501, 66.632, 70.323])

# Json beside the weights -> what it tells.
JSONS: dict[str, tuple[str, Any, Any]] = {
    "open_clip": ("open_clip_config.json", {"preprocess_cfg": OPENAI | {"size": 1}}, OPENAI),
    "transformers": ("preprocessor_config.json",
                     {"image_mean": OPENAI["mean"], "image_std": OPENAI["std"]}, OPENAI),
    "no numbers": ("open_clip_config.json", {"preprocess_cfg": {"resize_mode": "x"}}, None),
    "none": ("open_clip_config.json", {"preprocess_cfg": None}, None),
    "nothing": ("preprocessor_config.json", {}, None),
}  # fmt: skip


def saved(folder: Path, name: str, content: Any) -> Path:
    path = FORMATS["open_clip folder, safetensors"](random_clip(), folder)
    config = json.loads((path / "open_clip_config.json").read_text())
    write_json(path / name, config | content if name.startswith("open_clip") else content)
    return path


@pytest.mark.parametrize("kind", JSONS)
def test_the_json_beside_the_weights_tells(kind: str, tiny_clip_json: str, tmp_path: Path) -> None:
    name, content, expected = JSONS[kind]
    path = saved(tmp_path, name, content)
    for pretrained in (path, path / "open_clip_model.safetensors"):
        assert CLIPSource(tiny_clip_json, str(pretrained)).pixel_statistics == expected


@pytest.mark.parametrize(
    "content",
    [
        {"mean": [0.5, 0.5]} | {"std": [1, 1, 1]},
        {"mean": [0, 0, 0]},
        {"mean": ["x", 0, 0], "std": [1, 1, 1]},
        {"mean": 3, "std": [1, 1, 1]},
        {"mean": [0, 0, 0], "std": [1, 0, 1]},
        {"mean": [float("nan"), 0, 0], "std": [1, 1, 1]},
        {"mean": [122.771, 116.746, 104.094], "std": [1, 1, 1]},
    ],
)
def test_what_is_no_statistic_is_told_and_left_out(
    content: Any, tiny_clip_json: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = saved(tmp_path, "open_clip_config.json", {"preprocess_cfg": content})
    assert CLIPSource(tiny_clip_json, str(path)).pixel_statistics is None
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith(f"{path / 'open_clip_config.json'}: its mean and std")


def test_a_tag_tells(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(source, "fetch_tag", lambda *args: tmp_path / "x.safetensors")
    count = 0
    for name, tag in open_clip.list_pretrained():
        named, found = CLIPSource(name, tag), open_clip.get_pretrained_cfg(name, tag)
        try:
            _ = named.path
        except TagCLIPError:
            continue
        count += 1
        assert named.pixel_statistics == {key: list(found[key]) for key in ("mean", "std")}
    assert count > 40
    assert CLIPSource("ViT-B-16-quickgelu", "openai").pixel_statistics == OPENAI


def lines(cfg: CfgNode, caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    caplog.clear()
    with caplog.at_level(logging.INFO):
        model = build_model(cfg)
    recorded = CLIPSource.from_config(cfg).pixel_statistics
    stored = checkpoint_metadata(cfg, model)["clip_pixel_statistics"]
    assert stored == (json.dumps(recorded) if recorded else None)
    assert run_info(cfg)["clip_pixel_statistics"] == recorded
    found = [(r.levelname, r.getMessage()) for r in caplog.records]
    return [line for line in found if "pixel statistics" in line[1]]


@pytest.mark.parametrize("channels", ["RGB", "BGR"])
def test_one_line_says_whether_they_are_in_force(
    channels: str, tiny_cfg: CfgNode, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Setting what the warning names ends it."""
    path = saved(tmp_path, "open_clip_config.json", {"preprocess_cfg": OPENAI})
    cfg = changed(tiny_cfg, "MODEL.CLIP.PRETRAINED", str(path), "INPUT.FORMAT", channels)
    ((level, said),) = lines(cfg, caplog)
    order = 1 if channels == "RGB" else -1
    mean, std = (values[::order] for values in IN_BYTES)
    assert level == "WARNING"
    assert f"MODEL.PIXEL_MEAN {list(cfg.MODEL.PIXEL_MEAN)} and" in said
    assert said.endswith(f'with MODEL.PIXEL_MEAN "{mean}" MODEL.PIXEL_STD "{std}"')
    values = said.rpartition(" with ")[2].split('"')
    cfg = changed(cfg, values[0].strip(), values[1], values[2].strip(), values[3])
    ((level, said),) = lines(cfg, caplog)
    assert level == "INFO" and "that are in force" in said


def test_without_statistics_there_is_no_line(
    tiny_cfg: CfgNode, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = FORMATS["open_clip .safetensors"](random_clip(), tmp_path)
    assert not lines(changed(tiny_cfg, "MODEL.CLIP.PRETRAINED", str(path)), caplog)
    assert not lines(tiny_cfg, caplog)
