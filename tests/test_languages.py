"""Class names in any script with a multilingual text tower: label maps, checkpoints, folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from detectron2.config import CfgNode
from helpers.clip_files import TINY_CLIP, fails, write_json
from helpers.text_models import save_text_model
from helpers.tiny_checkpoint import build, checkpointer, save_tiny
from helpers.tiny_run import changed
from helpers.toy_dataset import vocabulary_tree
from open_clip.model import CustomTextCLIP
from safetensors.torch import save_file

from tagclip import TagCLIPPredictor, Vocabulary
from tagclip.errors import CheckpointError, ConfigError
from tagclip.export.onnx import WindowModel, text_tower_to_onnx

NAMES = ["кошка", "猫の写真", "colline verte", "고양이", "صورة"]
TEXT = {"hf_model_name": "org/xlm", "hf_tokenizer_name": "org/xlm", "hf_proj_type": "linear"}


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (70, 90, 3)).astype(np.uint8)


@pytest.fixture
def clip(tmp_path: Path) -> CustomTextCLIP:
    """A multilingual CLIP; its folder "home" has a json, weights and the tokenizer."""
    home = tmp_path / "home"
    save_text_model("xlm", home / "tokenizer")
    write_json(home / "clip.json", TINY_CLIP | {"text_cfg": TEXT})
    text = TEXT | {"hf_model_name": str(home / "tokenizer"), "hf_model_pretrained": False}
    torch.manual_seed(0)
    model = CustomTextCLIP(**TINY_CLIP | {"text_cfg": text}).eval()
    save_file(model.state_dict(), home / "clip.safetensors")
    return model


@pytest.fixture
def cfg(tiny_cfg: CfgNode, clip: CustomTextCLIP, tmp_path: Path) -> CfgNode:
    home = tmp_path / "home"
    files = {"NAME": "clip.json", "PRETRAINED": "clip.safetensors", "TOKENIZER": "tokenizer"}
    pairs = [(f"MODEL.CLIP.{key}", str(home / file)) for key, file in files.items()]
    return changed(tiny_cfg, *[value for pair in pairs for value in pair])


def test_from_a_class_list_to_a_label_map(
    cfg: CfgNode, clip: CustomTextCLIP, image: np.ndarray, tmp_path: Path
) -> None:
    path = write_json(tmp_path / "names.json", vocabulary_tree(NAMES, NAMES[3:]))
    vocabulary = Vocabulary.from_json(path)
    predictor = TagCLIPPredictor.from_checkpoint(save_tiny(cfg, tmp_path / "run"))
    predictor.set_vocabulary(NAMES)
    found = predictor(image)
    assert list(found["class_names"]) == NAMES
    assert found.labels.shape == image.shape[:2]
    assert set(np.unique(found.labels)) <= set(range(len(NAMES)))
    (tmp_path / "reference").mkdir()
    write_json(tmp_path / "reference" / "open_clip_config.json", {"model_cfg": {"text_cfg": TEXT}})
    for file in (tmp_path / "home" / "tokenizer").iterdir():
        shutil.copy(file, tmp_path / "reference")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'reference'}")
    with torch.no_grad():
        texts = [f"a photo of a {name}" for name in NAMES]
        expected = clip.encode_text(tokenizer(texts), normalize=True)
    bank = predictor.model.text_bank
    assert [t.replace("{}", "x") for t in bank.templates] == ["a photo of a x"]
    assert (bank(vocabulary) - expected).abs().max() < 1e-5


def test_a_folder_brings_the_tokenizer(cfg: CfgNode, image: np.ndarray, tmp_path: Path) -> None:
    """And needs neither the files of its training nor a network."""
    saved = save_tiny(cfg, tmp_path / "run")
    before = TagCLIPPredictor.from_checkpoint(saved)
    folder = tmp_path / "model"
    fails(CheckpointError, lambda: before.save_pretrained(folder), "--with-clip")
    before.save_pretrained(folder, with_clip=True)
    before.set_vocabulary(NAMES)
    expected = before(image)
    shutil.rmtree(tmp_path / "home")
    names = {path.name for path in (folder / "clip" / "tokenizer").iterdir()}
    assert names == {"config.json", "tokenizer.json", "tokenizer_config.json"}
    assert "home" not in "".join(
        p.read_text() for p in folder.glob("*.*") if p.suffix != ".safetensors"
    )
    after = TagCLIPPredictor.from_pretrained(folder.rename(tmp_path / "elsewhere"))
    after.set_vocabulary(NAMES)
    assert torch.equal(after(image).labels, expected.labels)
    # Handed on once more.
    after.save_pretrained(tmp_path / "again", with_clip=True)
    assert (tmp_path / "again" / "clip" / "tokenizer" / "config.json").is_file()
    fails(CheckpointError, lambda: TagCLIPPredictor.from_checkpoint(saved), "MODEL.CLIP.")


def test_a_tokenizer_alone_is_of_this_machine(cfg: CfgNode, tmp_path: Path) -> None:
    """Also where the weights are not."""
    saved = save_tiny(changed(cfg, "MODEL.CLIP.PRETRAINED", ""), tmp_path / "run")
    predictor = TagCLIPPredictor.from_checkpoint(saved)
    fails(
        CheckpointError, lambda: predictor.save_pretrained(tmp_path / "m"), "MODEL.CLIP.TOKENIZER"
    )


def test_words_as_an_input_are_of_clips_own_tower(cfg: CfgNode, tmp_path: Path) -> None:
    model = TagCLIPPredictor.from_checkpoint(save_tiny(cfg, tmp_path / "run")).model
    for action in (
        lambda: WindowModel(model, None),
        lambda: text_tower_to_onnx(model.text_bank.source),
    ):
        fails(ConfigError, action, "clip.json", "--words baked")


def renumber(folder: Path) -> None:
    """Another tokenizer of the same size: two words have each other's ids."""
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary[-1], vocabulary[-2] = vocabulary[-2], vocabulary[-1]
    file.write_text(json.dumps(content))


def test_another_tokenizer_of_the_same_size_is_refused(cfg: CfgNode, tmp_path: Path) -> None:
    """In a new place, in the same place, and in a folder that was handed on."""
    saved = save_tiny(cfg, tmp_path / "run")
    predictor = TagCLIPPredictor.from_checkpoint(saved)
    predictor.save_pretrained(tmp_path / "model", with_clip=True)
    own, other = tmp_path / "home" / "tokenizer", tmp_path / "other"
    shutil.copytree(own, other)
    # The same one in another place is the same.
    TagCLIPPredictor.from_checkpoint(saved, ["MODEL.CLIP.TOKENIZER", str(other)])
    renumber(other)
    words = ("clip_text_sha256: found", "(MODEL.CLIP.TOKENIZER)")
    opts = ["MODEL.CLIP.TOKENIZER", str(other)]
    fails(CheckpointError, lambda: TagCLIPPredictor.from_checkpoint(saved, opts), *words)
    renumber(own)
    fails(CheckpointError, lambda: TagCLIPPredictor.from_checkpoint(saved), *words)
    TagCLIPPredictor.from_pretrained(tmp_path / "model")
    renumber(tmp_path / "model" / "clip" / "tokenizer")
    fails(CheckpointError, lambda: TagCLIPPredictor.from_pretrained(tmp_path / "model"), words[0])


def test_a_resumed_run_keeps_its_tokenizer(cfg: CfgNode, tmp_path: Path) -> None:
    saved = save_tiny(cfg, tmp_path / "run")
    own, model = build(cfg)
    checkpointer(own, model, saved.parent).resume_or_load("", resume=True)
    renumber(tmp_path / "home" / "tokenizer")
    own, model = build(cfg)
    action = checkpointer(own, model, saved.parent).resume_or_load
    fails(CheckpointError, lambda: action("", resume=True), "clip_text_sha256: found")


def test_a_checkpoint_from_before_tokenizers_were_known_loads(cfg: CfgNode, tmp_path: Path) -> None:
    saved = save_tiny(cfg, tmp_path / "run")
    content = torch.load(saved, weights_only=True)
    assert len(content["tagclip"].pop("clip_text_sha256")) == 64
    torch.save(content, saved)
    TagCLIPPredictor.from_checkpoint(saved)
