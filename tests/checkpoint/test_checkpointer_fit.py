"""A checkpoint that does not fit is refused; only the trusty token may be left out of it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from helpers.clip_files import FORMATS, TINY_CLIP, random_clip, tiny_config, write_json
from helpers.tiny_checkpoint import assert_equal, build, checkpointer, save_tiny, trained

from tagclip.checkpoint import read_checkpoint
from tagclip.engine import run_info
from tagclip.errors import CheckpointError
from tagclip.solver import build_optimizer

TOKEN = "sem_seg_head.trusty_token"
OFF = {"MODEL__TAGCLIP__TRUSTY__ENABLED": False}


@pytest.fixture
def saved(tiny_cfg: CfgNode, tmp_path: Path) -> Path:
    return save_tiny(tiny_cfg, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"MODEL__CLIP__PROMPT__NUM_TOKENS": 5},
            r"backbone\.prompts\.tokens: found 4x3x64, expected 4x5x64",
        ),
        (
            {"MODEL__TAGCLIP__LAYERS": "aann"},
            r"layers\.1\.self_attention\.\S*: found nothing, expected 32",
        ),
        ({"MODEL__TAGCLIP__NUM_HEADS": 2}, r"NUM_HEADS: found 4, expected 2"),
        ({"MODEL__TAGCLIP__FEATURE_SCALE": 8.0}, r"FEATURE_SCALE: found 1\.0, expected 8\.0"),
        (
            {"MODEL__CLIP__LAST_BLOCK": "naclip", "MODEL__CLIP__PROMPT__NUM_TOKENS": 0},
            "LAST_BLOCK: found clip, expected naclip",
        ),
        ({"MODEL__PIXEL_MEAN": [0.0, 0.0, 0.0]}, r"MODEL\.PIXEL_MEAN: found \[123\.675"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(
    tiny_cfg: CfgNode, saved: Path, change: dict[str, Any], message: str
) -> None:
    cfg, model = build(tiny_cfg, **change)
    before = trained(model)
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpointer(cfg, model, saved.parent).load(str(saved))
    text = str(caught.value)
    assert str(saved) in text and "TEST.ALLOW_PARTIAL_WEIGHTS" in text and "\n" not in text
    assert_equal(trained(model), before)


def test_partial_weights_load_what_fits_and_say_so(
    tiny_cfg: CfgNode, saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg, model = build(tiny_cfg, seed=2, MODEL__CLIP__PROMPT__NUM_TOKENS=5)
    before, content = trained(model), read_checkpoint(saved)["model"]
    checkpointer(cfg, model, saved.parent, allow_partial=True).load(str(saved))
    after = trained(model)
    assert torch.equal(after.pop("backbone.prompts.tokens"), before["backbone.prompts.tokens"])
    content.pop("backbone.prompts.tokens")
    assert_equal(after, content)
    assert "tokens: found 4x3x64, expected 4x5x64; loading the rest" in caplog.text


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("clip_sha256", "0" * 64, r"clip_sha256: found 0{64}, expected \w+ \(MODEL\.CLIP"),
        ("quick_gelu", False, r"quick_gelu: found False, expected True \(MODEL\.CLIP\.NAME\)"),
        ("trusty_target", "novel", r"trusty_target: found novel, expected seen"),
        ("format", 2, r"format: found 2, expected 1"),
    ],
)
def test_a_checkpoint_trained_otherwise_is_refused(
    tiny_cfg: CfgNode, saved: Path, key: str, value: Any, message: str
) -> None:
    cfg, model = build(tiny_cfg)
    content = torch.load(saved, weights_only=True)
    content["tagclip"][key] = value
    torch.save(content, saved)
    for purpose in ({}, {"optimizer": build_optimizer(cfg, model)}):
        with pytest.raises(CheckpointError, match=message):
            checkpointer(cfg, model, saved.parent, **purpose).load(str(saved), checkpointables=[])


# What is changed in the json or beside it -> what is said; "" is the same model.
OTHER_MODELS = {
    "heads": ({"vision_head_width": 32}, "", r"vision_cfg\.head_width: found 16, expected 32"),
    "text heads": ({"text_heads": 2}, "", r"text_cfg\.heads: found 4, expected 2"),
    "case": ({"text_tokenizer_kwargs": {"bpe_path": "m.gz", "clean": "whitespace"}}, "",
             r"text_cfg\.tokenizer_kwargs: found .*expected .*whitespace"),
    "merges": ({}, "b c\na b", r"clip_merges sha256: found \w{64}, expected \w{64}"),
    "a default spelt out": ({"vision_mlp_ratio": 4.0}, "", ""),
    "packed anew": ({}, "a b\nb c", ""),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHER_MODELS)
def test_another_model_json_or_other_merges_are_another_model(
    kind: str, tiny_cfg: CfgNode, tmp_path: Path
) -> None:
    """Neither the weights nor any shape tell it."""
    options, merges, said = OTHER_MODELS[kind]
    weights = FORMATS["open_clip .safetensors"](random_clip(), tmp_path)
    for folder, changes, text in (("a", {}, "a b\nb c"), ("b", options, merges or "a b\nb c")):
        (tmp_path / folder).mkdir()
        changes = {"text_tokenizer_kwargs": {"bpe_path": "m.gz"}} | changes
        write_json(tmp_path / folder / "clip.json", tiny_config(**changes))
        packed = gzip.compress(f"#version\n{text}\n".encode(), mtime=ord(folder))
        (tmp_path / folder / "m.gz").write_bytes(packed)
    clip = {"MODEL__CLIP__PRETRAINED": str(weights)}
    cfg, model = build(tiny_cfg, MODEL__CLIP__NAME=str(tmp_path / "a" / "clip.json"), **clip)
    checkpointer(cfg, model, tmp_path).save("model")
    cfg, model = build(tiny_cfg, MODEL__CLIP__NAME=str(tmp_path / "b" / "clip.json"), **clip)
    other = checkpointer(cfg, model, tmp_path)
    if not said:
        other.load(str(tmp_path / "model.pth"))
        return
    with pytest.raises(CheckpointError, match=rf"{said}.* \(MODEL\.CLIP\.NAME\)") as caught:
        other.load(str(tmp_path / "model.pth"))
    assert "\n" not in str(caught.value)


def test_another_activation_in_the_model_json_is_another_model(
    tiny_cfg: CfgNode, saved: Path, tmp_path: Path
) -> None:
    path = tmp_path / "gelu.json"
    path.write_text(json.dumps(TINY_CLIP | {"quick_gelu": False}))
    cfg, model = build(tiny_cfg, MODEL__CLIP__NAME=str(path))
    with pytest.raises(CheckpointError, match="quick_gelu: found True, expected False"):
        checkpointer(cfg, model, tmp_path).load(str(saved))


def test_frozen_tensors_in_a_full_copy_must_be_those_of_the_model(
    tiny_cfg: CfgNode, tmp_path: Path
) -> None:
    _, source = build(tiny_cfg, seed=3)
    path = tmp_path / "full.pth"
    torch.save(source.state_dict(), path)
    cfg, model = build(tiny_cfg, seed=4)
    checkpointer(cfg, model, tmp_path).load(str(path))
    assert_equal(trained(model), trained(source))
    name = next(name for name, p in source.named_parameters() if not p.requires_grad)
    source.get_parameter(name).view(-1)[0] += 0.01
    torch.save(source.state_dict(), path)
    with pytest.raises(CheckpointError, match=rf"{name}: found other values, expected those of"):
        checkpointer(cfg, model, tmp_path).load(str(path))


def test_a_target_without_a_token_does_not_matter(tiny_cfg: CfgNode, tmp_path: Path) -> None:
    off = {"MODEL__TAGCLIP__TRUSTY__ENABLED": False}
    cfg, model = build(tiny_cfg, MODEL__TAGCLIP__TRUSTY__TARGET="novel", **off)
    checkpointer(cfg, model, tmp_path).save("x")
    cfg, model = build(tiny_cfg, **off)
    checkpointer(cfg, model, tmp_path).load(str(tmp_path / "x.pth"))


def test_other_training_classes_are_for_a_new_training_only(tiny_cfg: CfgNode, saved: Path) -> None:
    """Evaluated under another split, classes that had labels would count as unseen."""
    cfg, model = build(tiny_cfg)
    content = torch.load(saved, weights_only=True)
    content["tagclip"]["seen_classes"] = ["sofa", "cat", "dog"]
    torch.save(content, saved)
    optimizer = build_optimizer(cfg, model)
    message = r"classes with labels .*: found 3, expected 3, such as 'dog' .*ZERO_SHOT\.SPLIT"
    with pytest.raises(CheckpointError, match=message):
        checkpointer(cfg, model, saved.parent).load(str(saved))
    with pytest.raises(CheckpointError, match=message):
        checkpointer(cfg, model, saved.parent, optimizer=optimizer).load(str(saved))
    training = checkpointer(cfg, model, saved.parent, optimizer=optimizer)
    training.resume_or_load(str(saved), resume=False)
    assert_equal(trained(model), content["model"])


def test_a_model_without_token_drops_it_and_says_so(
    tiny_cfg: CfgNode, saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg, model = build(tiny_cfg, seed=2, **OFF)
    checkpointer(cfg, model, saved.parent).load(str(saved))
    expected = {n: t for n, t in read_checkpoint(saved)["model"].items() if n != TOKEN}
    assert_equal(trained(model), expected)
    assert f"{saved}: its trusty token is dropped" in caplog.text
    cfg.MODEL.WEIGHTS = str(saved)
    assert run_info(cfg)["weights_dropped"] == [TOKEN]


def test_what_the_token_was_trained_on_does_not_matter_without_it(
    tiny_cfg: CfgNode, tmp_path: Path
) -> None:
    tiny_cfg.DATASETS.ZERO_SHOT.ALLOW_NOVEL_MASKS = True
    cfg, model = build(tiny_cfg, MODEL__TAGCLIP__TRUSTY__TARGET="novel")
    checkpointer(cfg, model, tmp_path).save("novel")
    cfg, model = build(tiny_cfg, **OFF)
    checkpointer(cfg, model, tmp_path).load(str(tmp_path / "novel.pth"))


def test_nothing_else_is_dropped(tiny_cfg: CfgNode, saved: Path) -> None:
    cfg, model = build(tiny_cfg, **OFF)
    checkpointer(cfg, model, saved.parent).save("without")
    without = saved.with_name("without.pth")
    cfg.MODEL.WEIGHTS = str(without)
    assert run_info(cfg)["weights_dropped"] == []
    # A token that a model has and a checkpoint lacks is missing.
    cfg, model = build(tiny_cfg)
    with pytest.raises(CheckpointError, match=rf"{TOKEN}: found nothing, expected 1x32"):
        checkpointer(cfg, model, saved.parent).load(str(without))
    cfg.MODEL.WEIGHTS = str(saved)
    assert run_info(cfg)["weights_dropped"] == []


@pytest.mark.parametrize(
    "dtype",
    [torch.bool, torch.uint8, torch.int8, torch.int32, torch.int64, torch.complex64,
     torch.complex128],
    ids=str,
)  # fmt: skip
def test_tensors_of_another_type_are_refused(
    tiny_cfg: CfgNode, saved: Path, dtype: torch.dtype
) -> None:
    """torch would round integers or drop the imaginary part, and evaluate that."""
    content = torch.load(saved, weights_only=True)
    changed = content["model"] | {TOKEN: (content["model"][TOKEN] * 100).to(dtype)}
    torch.save(content | {"model": changed}, saved)
    cfg, model = build(tiny_cfg)
    before, short = trained(model), str(dtype).removeprefix("torch.")
    with pytest.raises(CheckpointError, match=rf"{TOKEN}: found {short}, expected float32;"):
        checkpointer(cfg, model, saved.parent).load(str(saved))
    assert_equal(trained(model), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_tensors_of_another_precision_are_read(
    tiny_cfg: CfgNode, saved: Path, dtype: torch.dtype
) -> None:
    content = torch.load(saved, weights_only=True)
    cast = {name: tensor.to(dtype) for name, tensor in content["model"].items()}
    torch.save(content | {"model": cast}, saved)
    cfg, model = build(tiny_cfg)
    checkpointer(cfg, model, saved.parent).load(str(saved))
    assert_equal(trained(model), {name: tensor.float() for name, tensor in cast.items()})


def test_a_count_that_is_a_fraction_is_refused(tiny_cfg: CfgNode, tmp_path: Path) -> None:
    """Integers of a model stay integers, too."""
    cfg, model = build(tiny_cfg)
    model.register_buffer("count", torch.tensor(3))
    training = checkpointer(cfg, model, tmp_path)
    training.save("x")
    training.load(str(tmp_path / "x.pth"))
    content = torch.load(tmp_path / "x.pth", weights_only=True)
    content["model"]["count"] = torch.tensor(2.5)
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="count: found float32, expected int64"):
        training.load(str(tmp_path / "x.pth"))
    assert model.count == 3
