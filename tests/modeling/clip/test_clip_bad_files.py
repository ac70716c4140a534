"""Weight files that are damaged, unsafe or of another model are refused in one line."""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
from helpers.clip_files import FORMATS, fails, random_clip, save_archive, sha256, tiny_config
from open_clip.model import CLIP
from safetensors.torch import save_file

from tagclip.errors import CheckpointError
from tagclip.modeling.backbone import CLIPViT
from tagclip.modeling.clip import CLIPSource, read_clip_weights


@pytest.fixture(scope="module")
def clip() -> CLIP:
    return random_clip()


@pytest.fixture(scope="module")
def archive(clip: CLIP, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TorchScript archive."""
    path = tmp_path_factory.mktemp("archive") / "clip.pt"
    save_archive(clip, path)
    return path


# TorchScript archives hold code


def test_an_unconfirmed_archive_is_refused(archive: Path, tiny_clip_json: str) -> None:
    source = CLIPSource(tiny_clip_json, str(archive))
    fails(CheckpointError, source.state_dict, archive, sha256(archive), "holds code", "CLIP.SHA256")
    fails(CheckpointError, lambda: read_clip_weights(archive, confirmed_sha256="0" * 64), archive)


def test_a_published_archive_needs_no_confirmation(
    archive: Path, tiny_clip_json: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"https://example.org/models/{sha256(archive)}/ViT-T-16.pt"
    monkeypatch.setattr(open_clip, "get_pretrained_url", lambda name, tag: address)
    assert CLIPSource(tiny_clip_json, str(archive)).state_dict()


def test_the_published_checksums_are_openais() -> None:
    from tagclip.modeling.clip.weights import _openai_sha256

    known = _openai_sha256()
    assert "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f" in known
    assert all(len(bytes.fromhex(value)) == 32 for value in known)


class Evil:
    """Pickles to a call that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_code_in_an_archive_does_not_run(
    archive: Path, tiny_clip_json: str, tmp_path: Path
) -> None:
    made, path = tmp_path / "made", tmp_path / "evil.pt"
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            evil = pickle.dumps(Evil(made), protocol=2) if name.endswith("/data.pkl") else None
            target.writestr(name, evil or source.read(name))
    source = CLIPSource(tiny_clip_json, str(path), sha256=sha256(path))
    fails(CheckpointError, source.state_dict, path, "unsafe")
    assert not made.exists()


def test_code_in_a_pickle_does_not_run(tiny_clip_json: str, tmp_path: Path) -> None:
    made = tmp_path / "made"
    torch.save({"visual.class_embedding": Evil(made)}, tmp_path / "new.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Evil(made), protocol=2))
    for name in ("new.pt", "plain.pt"):
        source = CLIPSource(tiny_clip_json, str(tmp_path / name))
        fails(CheckpointError, source.state_dict, tmp_path / name, "unsafe")
    assert not made.exists()
    torch.load(tmp_path / "new.pt", weights_only=False)
    assert made.exists(), "the file is harmless: it tests nothing"


# Bad files


def test_a_missing_file_is_named(tiny_clip_json: str, tmp_path: Path) -> None:
    for name in ("missing.pt", "missing/folder"):
        source = CLIPSource(tiny_clip_json, str(tmp_path / name))
        fails(CheckpointError, source.state_dict, tmp_path / name, "MODEL.CLIP.PRETRAINED")


def test_a_folder_without_weights_lists_the_expected_names(
    tiny_clip_json: str, tmp_path: Path
) -> None:
    source = CLIPSource(tiny_clip_json, str(tmp_path))
    fails(CheckpointError, source.state_dict, tmp_path, "open_clip_model.safetensors")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".bin"])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_truncated_file_is_named(
    suffix: str, share: float, clip: CLIP, tiny_clip_json: str, tmp_path: Path
) -> None:
    kind = f"open_clip {suffix}"
    path = FORMATS[kind](clip, tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    source = CLIPSource(tiny_clip_json, str(path))
    fails(CheckpointError, source.state_dict, path, path.stat().st_size, "incomplete")


def test_a_truncated_archive_is_named(archive: Path, tiny_clip_json: str, tmp_path: Path) -> None:
    path = tmp_path / "clip.pt"
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            if not name.endswith("/data/3"):
                target.writestr(name, source.read(name))
    source = CLIPSource(tiny_clip_json, str(path), sha256=sha256(path))
    fails(CheckpointError, source.state_dict, path, "incomplete")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ([1, 2], "list"),
        ({"visual.class_embedding": 3}, "'visual.class_embedding'"),
        ({"state_dict": 3}, "int"),
        ({"weight": torch.zeros(2)}, "begin with weight, expected those of a CLIP: an image"),
        ({"a\nb": torch.zeros(2)}, "begin with a b, expected those of a CLIP: an image"),
        ({"visual.trunk.cls_token": torch.zeros(2)}, "begin with visual, expected"),
        ({"text.token_embedding.weight": torch.zeros(2)}, "begin with text, expected"),
    ],
)
def test_a_file_without_clip_is_refused(
    content: object, found: str, tiny_clip_json: str, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "other.pt")
    source = CLIPSource(tiny_clip_json, str(tmp_path / "other.pt"))
    fails(CheckpointError, source.state_dict, tmp_path / "other.pt", found)


def vision_tower(source: CLIPSource) -> CLIPViT:
    return CLIPViT(
        **source.vision_config(), state=source.vision_state(), weights_path=str(source.path)
    )


def test_weights_of_another_architecture_are_refused(tiny_clip_json: str, tmp_path: Path) -> None:
    other = random_clip(tiny_config(vision_width=32, vision_layers=2, text_width=16))
    path = tmp_path / "other.pt"
    torch.save(other.state_dict(), path)
    source = CLIPSource(tiny_clip_json, str(path))
    fails(CheckpointError, lambda: vision_tower(source), path, "blocks.2", "more", "CLIP.NAME")
    fails(CheckpointError, source.text_tower, path, "(49408, 16) instead of (49408, 32)")


def test_unknown_and_missing_names_are_listed(
    clip: CLIP, tiny_clip_json: str, tmp_path: Path
) -> None:
    path = tmp_path / "clip.pt"
    state = dict(clip.state_dict())
    del state["visual.ln_pre.weight"], state["ln_final.bias"]
    torch.save(state | {"visual.extra": torch.zeros(1), "extra": torch.zeros(1)}, path)
    source = CLIPSource(tiny_clip_json, str(path))
    wrong = "ln_pre.weight is missing", "extra is unknown"
    fails(CheckpointError, lambda: vision_tower(source), path, *wrong)
    fails(CheckpointError, source.text_tower, path, "ln_final.bias is missing", "extra is unknown")


def test_an_unpacked_tensor_of_transformers_is_not_lost(
    clip: CLIP, tiny_clip_json: str, tmp_path: Path
) -> None:
    folder = FORMATS["transformers folder, bin"](clip, tmp_path)
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    del state["vision_model.encoder.layers.1.self_attn.k_proj.weight"]
    torch.save(state, folder / "pytorch_model.bin")
    source = CLIPSource(tiny_clip_json, str(folder))
    wrong = "blocks.1.attn.qkv.weight is missing", "q_proj.weight is unknown"
    fails(CheckpointError, lambda: vision_tower(source), folder, *wrong)


def test_weights_that_are_not_finite(clip: CLIP, tiny_clip_json: str, tmp_path: Path) -> None:
    state, path = dict(clip.state_dict()), tmp_path / "broken.pt"
    state["ln_final.bias"] = state["ln_final.bias"] / 0
    torch.save(state, path)
    source = CLIPSource(tiny_clip_json, str(path))
    fails(CheckpointError, source.state_dict, path, "not finite in ln_final.bias", "download")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    ("zero", "named"),
    [
        (lambda name: name == "text_projection", "text_projection,"),
        (lambda name: name.startswith("visual.transformer"), "visual.transformer.resblocks.0."),
        (lambda name: name.startswith("visual."), "visual.conv1.weight"),
        (lambda name: True, " more, expected"),
    ],
    ids=["one", "blocks", "tower", "all"],
)
def test_matrices_of_zeros_are_refused(
    zero: Callable[[str], bool], named: str, suffix: str, clip: CLIP, tiny_clip_json: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    """A download may break off in a file that has its full size from the start."""
    path = tmp_path / f"clip{suffix}"
    state = {n: t * 0 if zero(n) else t.clone() for n, t in clip.state_dict().items()}
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    source = CLIPSource(tiny_clip_json, str(path))
    fails(CheckpointError, source.state_dict, path, named, "nothing but zeros", "download it again")


def test_biases_and_positions_may_be_zero(clip: CLIP, tmp_path: Path) -> None:
    zero = ("bias", "positional_embedding", "class_embedding")
    state = {n: t * 0 if n.endswith(zero) else t for n, t in clip.state_dict().items()}
    torch.save(state, tmp_path / "clip.pt")
    assert read_clip_weights(tmp_path / "clip.pt").state.keys() == state.keys()


# Types that torch converts without a word, and two that it cannot convert.
OTHER_TYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16,
    torch.complex32, torch.complex64, torch.complex128, torch.float4_e2m1fn_x2,
    torch.float8_e8m0fnu,
]  # fmt: skip


def of_type(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if dtype == torch.float4_e2m1fn_x2:
        return tensor.to(torch.uint8).view(dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "ComplexHalf support is experimental")
        return tensor.to(dtype)


@pytest.mark.parametrize("dtype", OTHER_TYPES, ids=str)
def test_weights_of_another_type_are_refused(
    dtype: torch.dtype, clip: CLIP, tiny_clip_json: str, tmp_path: Path
) -> None:
    """Rounded or cut, they would be evaluated."""
    path, state = tmp_path / "clip.pt", clip.state_dict()
    for changed in (["positional_embedding", "visual.proj"], list(state)):
        torch.save(state | {name: of_type(state[name], dtype) for name in changed}, path)
        source = CLIPSource(tiny_clip_json, str(path))
        short, more = str(dtype).removeprefix("torch."), len(changed) - 5
        first = next(name for name in state if name in changed)
        fails(CheckpointError, source.state_dict, path, f"{first} ({short})", "floating-point")
        if more > 0:
            fails(CheckpointError, source.state_dict, f"and {more} more")


FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_floating_point_weights_and_integer_counts_are_read(
    dtype: torch.dtype, clip: CLIP, tmp_path: Path
) -> None:
    cast = {name: tensor.to(dtype) for name, tensor in clip.state_dict().items()}
    counts = {"visual.bn.num_batches_tracked": torch.tensor(3), "position_ids": torch.arange(4)}
    torch.save(cast | counts | {"attn_mask": torch.ones(2, 2, dtype=torch.bool)}, tmp_path / "c.pt")
    found = read_clip_weights(tmp_path / "c.pt").state
    assert found.pop("visual.bn.num_batches_tracked") == 3
    assert found.keys() == cast.keys()
    for name, tensor in cast.items():
        assert found[name].dtype == torch.float32 and torch.equal(found[name], tensor.float())
