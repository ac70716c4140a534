"""Checkpoints of others: the golden scores come back, and nothing is lost or let in silently."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from golden import TRIMMED
from golden.inference import encode, scores
from golden.models import GivenVectors, Workspace, workspace
from golden.report import Golden
from helpers.clip_files import FORMATS, random_clip, save_archive, sha256
from helpers.mmengine_files import save_mmengine
from helpers.tiny_run import exit_of, load_tool
from safetensors.torch import save_file
from torch import Tensor

from tagclip import TagCLIPCheckpointer
from tagclip.checkpoint import checkpoint_config, checkpoint_metadata, read_checkpoint
from tagclip.checkpoint.conversion.clip import write_frozen_clip
from tagclip.checkpoint.conversion.files import convert_file
from tagclip.checkpoint.conversion.mmseg import convert_official
from tagclip.errors import CheckpointError, ConfigError
from tagclip.modeling.clip import CLIPSource
from tagclip.modeling.clip.weights import find_weight_file, read_clip_weights, weights_sha256
from tagclip.structures import Provenance

LAYER = "decode_head.decoder.layers"


@pytest.fixture(scope="module")
def space() -> Iterator[Workspace]:
    with workspace(Golden(torch.load(TRIMMED, weights_only=True))) as space:
        yield space


def official(space: Workspace) -> dict[str, Tensor]:
    return space.golden.tree("state_dict")


def zegclip(space: Workspace) -> dict[str, Tensor]:
    backbone = {n: t for n, t in official(space).items() if not n.startswith("decode_head.")}
    return space.golden.tree("zegclip_state_dict") | backbone


def mmseg_file(folder: Path, state: dict[str, Tensor]) -> Path:
    """A checkpoint as mmcv writes it, optimizer included."""
    meta = {"iter": 20000, "CLASSES": ("cat", "dog"), "PALETTE": [[0, 0, 0]], "env_info": "gcc"}
    optimizer = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 2e-5}]}
    path = folder / "iter_20000.pth"
    torch.save({"meta": meta, "state_dict": state, "optimizer": optimizer}, path)
    return path


def loaded(cfg: CfgNode, space: Workspace, checkpoint: Path) -> torch.nn.Module:
    """The config's model with the checkpoint, by the path that an evaluation takes."""
    model = build_model(cfg).eval()
    metadata = checkpoint_metadata(cfg, model)
    TagCLIPCheckpointer(model, metadata=metadata).load(str(checkpoint))
    model.text_bank = GivenVectors(space.vocabulary.names, space.golden.input("text_embedding"))
    return model


def assert_golden(space: Workspace, model: torch.nn.Module, key: str, mode: str) -> None:
    ours = torch.stack([scores(f, mode, "st_False") for f in encode(space, model)])
    torch.testing.assert_close(
        space.golden.trim(key, ours), space.golden.data[key], atol=2e-5, rtol=0
    )


ZEGCLIP = {"MODEL__TAGCLIP__LAYERS": "nnn", "MODEL__TAGCLIP__TRUSTY__ENABLED": False}


@pytest.mark.parametrize(
    ("state", "options", "key", "mode"),
    [
        (official, {}, "eval/sem/disc_True/st_False", "both"),
        (zegclip, ZEGCLIP, "zegclip_eval/sem/st_False", "none"),
    ],
)
def test_a_converted_checkpoint_gives_the_golden_scores(
    space: Workspace, tmp_path: Path, state: Callable, options: dict, key: str, mode: str
) -> None:
    """With its own CLIP, written as open_clip's, once with and once without a config."""
    source, clip = mmseg_file(tmp_path, state(space)), tmp_path / "clip.safetensors"
    lines = convert_file(source, tmp_path / "plain.pth", clip_target=clip)
    assert any("trusty_target: " + ("None" if options else "novel") in line for line in lines)
    cfg = space.config(MODEL__CLIP__PRETRAINED=str(clip), **options)
    convert_file(source, tmp_path / "fitted.pth", cfg=cfg)
    for name in ("plain.pth", "fitted.pth"):
        assert_golden(space, loaded(cfg, space, tmp_path / name), key, mode)
    plain, fitted = (read_checkpoint(tmp_path / n) for n in ("plain.pth", "fitted.pth"))
    assert plain["model"].keys() == fitted["model"].keys()
    assert plain["tagclip"]["clip_sha256"] == fitted["tagclip"]["clip_sha256"] == sha256(clip)
    assert fitted["tagclip"]["seen_classes"] == space.seen.names
    assert fitted["tagclip"]["source"]["iteration"] == 20000
    # Others' files do not tell what was before, and only the config says which masks there were.
    bare, declared = (Provenance.from_json(c["tagclip"]["provenance"]) for c in (plain, fitted))
    assert bare == Provenance(is_complete=False) and not declared.is_complete
    (stage,) = declared.stages
    assert [names[0] for names in stage.masks] == space.seen.names


def test_every_tensor_is_kept_dropped_or_written_and_named(
    space: Workspace, tmp_path: Path
) -> None:
    state = official(space)
    lines = convert_file(mmseg_file(tmp_path, state), tmp_path / "x.pth")
    unread = set(space.golden.data["train/grad_none"])
    trained = set(space.golden.data["state_dict_trainable"]) - unread
    named = {verb: " ".join(x for x in lines if x.startswith(verb)) for verb in ("kept", "dropped")}
    for names, verb in ((trained, "kept"), (unread, "dropped")):
        for name in names:
            assert sum(name in text.replace(",", "").split() for text in named.values()) == 1
            assert name in named[verb]
    assert "empty_weight, constant" in named["dropped"] and "optimizer" in named["dropped"]
    frozen = len(state) - len(trained) - len(unread) - 1
    assert f"{frozen} frozen tensors of CLIP" in named["dropped"]
    assert any("recorded: source: kind TagCLIP, file iter_20000.pth" in line for line in lines)
    assert "recorded: provenance: ancestry unknown" in lines
    stored = read_checkpoint(tmp_path / "x.pth")["model"]
    assert len(stored) == len(trained) - 1  # two official tensors of prompts are one of ours
    parts = (state["backbone.prompt_embeddings"], state["backbone.deep_prompt_embeddings"])
    assert torch.equal(stored["backbone.prompts.tokens"], torch.cat(parts))


def test_weights_that_are_not_finite_are_not_converted(space: Workspace, tmp_path: Path) -> None:
    state = official(space)
    state["decode_head.disc_token"] = state["decode_head.disc_token"] * torch.inf
    with pytest.raises(CheckpointError, match=r"not finite in decode_head\.disc_token, expected"):
        convert_file(mmseg_file(tmp_path, state), tmp_path / "x.pth")
    assert not (tmp_path / "x.pth").exists()


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.complex64], ids=str)
def test_weights_of_another_type_are_not_converted(
    space: Workspace, tmp_path: Path, dtype: torch.dtype
) -> None:
    state, short = official(space), str(dtype).removeprefix("torch.")
    state["decode_head.disc_token"] = (state["decode_head.disc_token"] * 100).to(dtype)
    message = rf"found decode_head\.disc_token \({short}\), expected floating-point"
    with pytest.raises(CheckpointError, match=message):
        convert_file(mmseg_file(tmp_path, state), tmp_path / "x.pth")
    assert not (tmp_path / "x.pth").exists()


def test_what_mmengine_and_wrappers_put_around_it_is_taken_off(
    space: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Learning curves and scores of numpy in the file are no obstacle; its class names are kept."""
    state = official(space)
    new = save_mmengine(tmp_path / "new.pth", state, monkeypatch)
    parallel, scored = ({f"module.{n}": t for n, t in state.items()}, tmp_path / "scored.pth")
    hook = {"best_score": np.float64(0.8), "best_ckpt": "best.pth"}
    meta = {"iter": np.int64(20000), "CLASSES": ("cat", "dog"), "hook_msgs": hook}
    torch.save({"meta": meta, "state_dict": parallel, "optimizer": {}}, scored)
    plain = mmseg_file(tmp_path, state)
    contents = []
    for source, told in ((plain, ""), (new, "(weights without EMA) left"), (scored, "module.")):
        lines = convert_file(source, tmp_path / "out.pth")
        assert lines[1].startswith("unwrapped: ['state_dict']") and told in lines[1]
        content = read_checkpoint(tmp_path / "out.pth")
        contents.append(content["model"])
        assert content["tagclip"]["source"]["classes"] == ["cat", "dog"]
        assert content["tagclip"]["source"]["iteration"] == 20000
        assert contents[0].keys() == contents[-1].keys()
        assert all(torch.equal(contents[0][n], t) for n, t in contents[-1].items())
        if source == new:
            assert "dropped: message_hub, which belongs to the training run" in lines
            assert not any("dropped: meta" in line for line in lines)


def test_tagclip_without_a_token_is_no_zegclip(space: Workspace) -> None:
    """The released transductive VOC model has none."""
    state = {n: t for n, t in official(space).items() if n != "decode_head.disc_token"}
    conversion = convert_official(state)
    assert (conversion.kind, conversion.layers) == ("TagCLIP", "ann")
    assert conversion.trusty_target is None
    assert convert_official(zegclip(space)).layers == "nnn"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decode_head.conv_seg.weight": torch.zeros(1)}, r"unknown tensors decode_head\.conv_seg"),
        ({f"{LAYER}.1.extra.weight": torch.zeros(1)}, r"unknown tensors .*layers\.1\.extra"),
        ({f"{LAYER}.0.multihead_attn.k.bias": None}, r"layers\.0\.key\.bias is missing"),
        ({f"{LAYER}.2.multihead_attn.q.weight": None}, r"logits\.query\.weight is missing"),
        ({f"{LAYER}.1.norm3.bias": torch.zeros(5)}, r"layers\.1\.ffn_norm\.bias is \(5,\) instead"),
        ({"backbone.deep_prompt_embeddings": None, "backbone.prompt_embeddings": None},
         r"prompts, relation descriptor or decoder are missing"),
    ],
)  # fmt: skip
def test_what_is_not_such_a_checkpoint_is_refused(
    space: Workspace, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    state = official(space) | change
    source = mmseg_file(tmp_path, {n: t for n, t in state.items() if t is not None})
    with pytest.raises(CheckpointError, match=message) as error:
        convert_file(source, tmp_path / "x.pth")
    assert "\n" not in str(error.value) and str(source) in str(error.value)
    assert not (tmp_path / "x.pth").exists()


def test_a_damaged_file_is_refused(space: Workspace, tmp_path: Path) -> None:
    source = mmseg_file(tmp_path, official(space))
    source.write_bytes(source.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=rf"{source}: file is incomplete"):
        convert_file(source, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"nothing\.pth: no such file"):
        convert_file(tmp_path / "nothing.pth", tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"MODEL__CLIP__PROMPT__NUM_TOKENS": 6}, r"prompts\.tokens: found 4x5x64, expected 4x6x64"),
        ({"MODEL__TAGCLIP__LAYERS": "nnn"}, r"layers\.0\.self_attention\.\S*: found "),
        ({"MODEL__TAGCLIP__TRUSTY__TARGET": "seen"}, r"trusty_target: found novel, expected seen"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    space: Workspace, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    source = mmseg_file(tmp_path, official(space))
    with pytest.raises(CheckpointError, match=message) as error:
        convert_file(source, tmp_path / "x.pth", cfg=space.config(**options))
    assert str(error.value).startswith(str(source))
    assert not (tmp_path / "x.pth").exists()


def test_the_frozen_weights_have_to_be_the_configs(space: Workspace, tmp_path: Path) -> None:
    """Another position grid is no difference: the released code resizes it when it loads."""
    golden, clip = space.golden.data, space.official.clip
    state = official(space) | {"backbone.positional_embedding": golden["posembed/resized"]}
    source = mmseg_file(tmp_path, state)
    small = clip | {"visual.positional_embedding": golden["posembed/checkpoint"]}
    convert_file(source, tmp_path / "x.pth", cfg=space.config(small))
    name = "visual.transformer.resblocks.1.mlp.c_fc.bias"
    other = small | {name: clip[name] + 0.01}
    with pytest.raises(CheckpointError, match=rf"frozen {name} differs .* by 0\.01.*--clip-out"):
        convert_file(source, tmp_path / "y.pth", cfg=space.config(other))


@pytest.mark.parametrize("shape", [(0, 64), (), (2,), (12, 64)])
def test_a_frozen_table_of_no_square_grid_is_refused(
    space: Workspace, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    state = official(space) | {"backbone.positional_embedding": torch.zeros(shape)}
    source = mmseg_file(tmp_path, state)
    with pytest.raises(CheckpointError, match="frozen visual.positional_embedding differs"):
        convert_file(source, tmp_path / "x.pth", cfg=space.config())
    clip = space.official.clip | {"visual.positional_embedding": torch.zeros(shape)}
    with pytest.raises(CheckpointError, match=r"^--clip-out: [^\n]*expected \(1 \+ side x side"):
        write_frozen_clip(tmp_path / "c.safetensors", clip, {})
    assert not (tmp_path / "c.safetensors").exists() and not (tmp_path / "x.pth").exists()


def test_a_full_copy_has_the_vision_tower_and_still_fits(space: Workspace, tmp_path: Path) -> None:
    cfg, source = space.config(), mmseg_file(tmp_path, official(space))
    cfg.OUTPUT_DIR = str(tmp_path / "other" / "folder")
    convert_file(source, tmp_path / "full.pth", cfg=cfg, full=True)
    convert_file(source, tmp_path / "slim.pth", cfg=cfg)
    convert_file(tmp_path / "slim.pth", tmp_path / "again.pth", cfg=cfg, full=True)
    names = build_model(cfg).state_dict().keys()
    for name in ("full.pth", "again.pth"):
        content = read_checkpoint(tmp_path / name)
        assert content["model"].keys() == names
        assert torch.equal(content["model"]["backbone.proj"], space.official.clip["visual.proj"])
        assert content["tagclip"]["trusty_target"] == "novel"
        # Its paths are those from its own folder, not from OUTPUT_DIR.
        assert checkpoint_config(tmp_path / name).MODEL.CLIP.NAME == cfg.MODEL.CLIP.NAME
        model = loaded(cfg, space, tmp_path / name)
        assert_golden(space, model, "eval/sem/disc_True/st_False", "both")
    with pytest.raises(ConfigError, match="TagCLIP for Detectron2 already; add --full"):
        convert_file(tmp_path / "slim.pth", tmp_path / "y.pth", cfg=cfg)
    plain = read_checkpoint(tmp_path / "slim.pth")["model"]
    torch.save({"model": plain}, tmp_path / "plain.pth")
    save_file(plain, tmp_path / "plain.safetensors")
    for name, options in (
        ("plain.pth", {}),
        ("plain.pth", {"cfg": cfg, "full": True}),
        ("plain.safetensors", {}),
    ):
        with pytest.raises(CheckpointError, match="it needs no conversion: name it as MODEL.W"):
            convert_file(tmp_path / name, tmp_path / "y.pth", **options)


@pytest.mark.parametrize(
    ("state", "found"),
    [
        ({}, "no tensors"),
        ({"visual.proj": torch.ones(2, 2)}, "1 tensors whose names begin with visual"),
    ],
)
def test_what_is_neither_a_checkpoint_nor_a_clip_names_the_argument(
    state: dict[str, Tensor], found: str, tmp_path: Path
) -> None:
    source = tmp_path / "half.pth"
    torch.save(state, source)
    for path in (source, tmp_path / "nothing.pt"):
        with pytest.raises(CheckpointError, match="; name another file as IN: whole CLIP") as error:
            convert_file(path, tmp_path / "x.pth")
        assert "MODEL.CLIP.PRETRAINED" not in str(error.value)
        if path == source:
            assert f"{source}: found {found}, expected those of a CLIP" in str(error.value)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_clip_weights_of_every_kind_become_one_plain_file(
    tmp_path: Path, tiny_clip_json: str, kind: str, suffix: str
) -> None:
    model = random_clip()
    source, target = FORMATS[kind](model, tmp_path), tmp_path / f"plain{suffix}"
    confirmed = sha256(source) if "TorchScript" in kind else ""
    lines = convert_file(source, target, sha256=confirmed)
    assert any(line == f"written: {target}, sha256 {sha256(target)}" for line in lines)
    expected = {n: t for n, t in model.state_dict().items() if not n.endswith("attn_mask")}
    state = CLIPSource(tiny_clip_json, str(target)).state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    # What told the activation still does, in the format that has room for it.
    if suffix == ".safetensors":
        before = read_clip_weights(source, confirmed_sha256=confirmed).quick_gelu
        assert read_clip_weights(target).quick_gelu is before


def test_an_archive_needs_a_confirmation(tmp_path: Path) -> None:
    save_archive(random_clip(), tmp_path / "clip.pt")
    with pytest.raises(CheckpointError, match="which holds code, with sha256 "):
        convert_file(tmp_path / "clip.pt", tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "kind",
    [
        *("checkpoint", "checkpoint of ours", "open_clip .pt", "OpenAI TorchScript archive"),
        "transformers folder, safetensors",
    ],
)
def test_a_checksum_is_compared_with_whatever_comes_in(
    space: Workspace, tmp_path: Path, kind: str
) -> None:
    options: dict[str, Any] = {}
    target = tmp_path / ("out.pth" if "checkpoint" in kind else "out.pt")
    if kind == "checkpoint":
        source = mmseg_file(tmp_path, official(space))
        found = sha256(source)
    elif kind == "checkpoint of ours":
        source, options = tmp_path / "ours.pth", {"cfg": space.config(), "full": True}
        convert_file(mmseg_file(tmp_path, official(space)), source, cfg=options["cfg"])
        found = sha256(source)
    else:
        source = FORMATS[kind](random_clip(), tmp_path)
        found = weights_sha256(find_weight_file(source))
    with pytest.raises(CheckpointError, match=f"sha256 is {found}, expected {'0' * 64} "):
        convert_file(source, target, sha256="0" * 64, **options)
    assert not target.exists()
    convert_file(source, target, sha256=found.upper(), **options)
    assert target.exists()


@pytest.mark.parametrize("text", ["", "abc", "g" * 64, "0" * 63, "0" * 65])
def test_what_is_no_checksum_is_a_usage_error(
    text: str, repository: Path, capsys: pytest.CaptureFixture
) -> None:
    tool = load_tool(repository / "tools" / "convert_checkpoint.py")
    assert exit_of(tool.parse_arguments, ["in.pt", "out.pt", "--sha256", text]) == 2
    assert "--sha256: found" in capsys.readouterr().err


def test_arguments_that_do_not_go_together(space: Workspace, tmp_path: Path) -> None:
    source = mmseg_file(tmp_path, official(space))
    clip = tmp_path / "clip.pt"
    torch.save(dict(random_clip().state_dict()), clip)
    cfg, own = space.config(), tmp_path / "own.pth"
    convert_file(source, own, cfg=cfg)
    convert, again = partial(convert_file, source), partial(convert_file, own, cfg=cfg, full=True)
    for action, message in (
        (partial(convert, source), "found the same file for IN and OUT"),
        (partial(convert, tmp_path / "x.pt"), r"found a \.pt, expected \.pth"),
        (partial(convert, tmp_path / "x.pth", full=True), "--full: needs --config-file"),
        (partial(convert, tmp_path / "x.pth", clip_target=tmp_path / "c.bin"), r"found a \.bin"),
        (partial(convert_file, clip, tmp_path / "x.pth"), r"expected \.safetensors or \.pt"),
        (partial(convert_file, clip, tmp_path / "x.pt", full=True), "--full: found with CLIP"),
        (partial(again, tmp_path / "x.pth", clip_target="c.pt"), "--clip-out: found with a check"),
    ):
        with pytest.raises(ConfigError, match=message):
            action()
    assert not (tmp_path / "x.pth").exists()


def test_the_tool_reads_a_config_and_prints(
    repository: Path, tiny_cfg: CfgNode, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    tool = load_tool(repository / "tools" / "convert_checkpoint.py")
    model = build_model(tiny_cfg)
    folder, config = tmp_path / "run", tmp_path / "config.yaml"
    metadata = checkpoint_metadata(tiny_cfg, model)
    folder.mkdir()
    TagCLIPCheckpointer(model, str(folder), metadata=metadata).save("model_final")
    config.write_text(tiny_cfg.dump())
    words = [str(folder / "model_final.pth"), str(tmp_path / "full.pth"), "--full"]
    tool.main(tool.parse_arguments([*words, "--config-file", str(config), "--opts", "SEED", "3"]))
    assert f"written: {tmp_path / 'full.pth'}" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="config keys: found SEED 3 without --config-file"):
        tool.main(tool.parse_arguments([*words, "--opts", "SEED", "3"]))
