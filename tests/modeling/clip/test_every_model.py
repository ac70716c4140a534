"""Every model of open_clip: its towers equal open_clip's, or one line says why it is refused.

Blocks are cut to two, weights are random. Run with ``-rA`` for the list.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from helpers.clip_files import TINY_CLIP, write_json
from helpers.small_towers import TINY_TEXT, random_image_tower, small_config
from torch.nn import functional as F

from tagclip.errors import ConfigError
from tagclip.modeling.backbone import CLIPTimm, CLIPViT
from tagclip.modeling.clip import CLIPSource

# Neither has weights anywhere: open_clip lists no tag of them.
TABLES_OF_ONE_SIZE = {"swin_base_patch4_window7_224", "vit_relpos_medium_patch16_cls_224"}
REFUSED = TABLES_OF_ONE_SIZE | {name for name in open_clip.list_models() if name.startswith("RN")}


def image_towers() -> dict[str, list[str]]:
    """One name of every image tower -> all names that share it."""
    groups: dict[str, list[str]] = {}
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        key = [config["vision_cfg"], config["embed_dim"], config.get("quick_gelu", False)]
        groups.setdefault(json.dumps(key, sort_keys=True), []).append(name)
    return {names[0]: names for names in groups.values()}


TOWERS = image_towers()


def model_json(name: str, path: Path) -> str:
    """A model with the image tower of another and a tiny text tower."""
    config = small_config(name, text_cfg=TINY_TEXT)
    config.pop("multimodal_cfg", None)
    return str(write_json(path / "model.json", config))


# From 1 to 20 seconds each; smaller ones of the same kind are quick.
HEAVY = ("EVA01-g", "EVA02-E-14", "EVA02-L", "PE-Core-L", "PE-Core-bigG-14-448", "convnext_large",
         "convnext_xlarge", "convnext_xxlarge", "ViTamin-L", "ViTamin-XL", "ViT-gopt", "ViT-bigG",
         "ViT-e-14", "ViT-H-1", "ViT-SO400M", "ViT-g-14", "ViT-L-1", "nllb-clip-large", "mt5-xl",
         "MobileCLIP2-S4")  # fmt: skip
NAMES = [
    pytest.param(name, marks=[pytest.mark.slow] * (name in TOWERS and name.startswith(HEAVY)))
    for name in open_clip.list_models()
]


def test_most_are_accepted() -> None:
    assert len(set(open_clip.list_models()) - REFUSED) >= 130


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_open_clips_or_refused_with_its_reason(
    name: str, tmp_path: Path, tiny_cfg: CfgNode
) -> None:
    """Text towers: tests/modeling/clip/test_text_tower.py."""
    twin = next(first for first, names in TOWERS.items() if name in names)
    if name in REFUSED:
        with pytest.raises(ConfigError, match="layers of a ResNet|tables of positions") as error:
            _ = CLIPSource(model_json(name, tmp_path)).config
        assert "\n" not in str(error.value)
        print(f"{name}: refused: {error.value}")
    elif name != twin:
        print(f"{name}: accepted, the image tower of {twin}")
    else:
        difference = check_image_tower(name, tmp_path, tiny_cfg)
        print(f"{name}: accepted, largest difference {difference:.1e}")
        assert difference < 1e-5


@torch.no_grad()
def check_image_tower(name: str, tmp_path: Path, tiny_cfg: CfgNode) -> float:
    """Segment an image with it; largest difference of its image vector from open_clip's."""
    source = CLIPSource(model_json(name, tmp_path))
    tower = random_image_tower(name)
    tower.output_tokens = False
    size = tower.image_size
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    expected = F.normalize(tower(images), dim=-1)
    if source.is_timm:
        net: Any = CLIPTimm(tower=tower, embed_dim=source.config["embed_dim"])
    else:
        options = source.vision_config() | {"double_cls_embed": False}
        net = CLIPViT(**options, pos_embed_resize="bicubic", state=tower.state_dict())
    rows, columns = size[0] // net.patch_size, size[1] // net.patch_size
    # Pixels behind the last whole patch are read by nobody.
    found = net.eval()(images[..., : rows * net.patch_size, : columns * net.patch_size])
    difference = (found["clip_global"] - expected).abs().max().item()
    assert found["clip_dense"].shape == (1, expected.shape[1], rows, columns)

    # The rest of the model knows the width alone.
    config = TINY_CLIP | {"embed_dim": source.config["embed_dim"]}
    tiny_cfg.MODEL.CLIP.NAME = str(write_json(tmp_path / "tiny.json", config))
    model = build_model(tiny_cfg).eval()
    model.backbone = net
    image = torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8)
    (result,) = model([{"image": image}])
    assert result["sem_seg_labels"].shape == (70, 90)
    assert torch.isfinite(result["sem_seg_scores"]).all()
    return difference
