"""A folder that is not whole, of another kind, or in the way: one line, nothing half-written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode
from helpers.tiny_checkpoint import save_tiny
from safetensors.torch import load_file, save_file

from tagclip import TagCLIPPredictor
from tagclip.checkpoint import find_weights, read_checkpoint
from tagclip.checkpoint.hub import is_hub_name, split_name
from tagclip.errors import CheckpointError, TagCLIPError
from tagclip.modeling.clip.weights import file_sha256
from tagclip.pretrained import saving


@pytest.fixture
def predictor(tiny_cfg: CfgNode, tmp_path: Path) -> TagCLIPPredictor:
    return TagCLIPPredictor.from_checkpoint(save_tiny(tiny_cfg, tmp_path / "run"))


@pytest.fixture
def folder(predictor: TagCLIPPredictor, tmp_path: Path) -> Path:
    return predictor.save_pretrained(tmp_path / "model")


def describe(**changes: Any) -> Callable[[Path], None]:
    """Other values in tagclip.json."""

    def change(folder: Path) -> None:
        path = folder / "tagclip.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def tensors(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Other tensors, whose checksum is right."""

    def write(folder: Path) -> None:
        path = folder / "model.safetensors"
        state = load_file(path)
        change(state)
        save_file(state, path)
        describe(weights_sha256=file_sha256(path))(folder)

    return write


def truncated(name: str, share: float = 0.5) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * share)])

    return cut


def flipped(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def replaced(name: str, old: str, new: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return write


ARCHITECTURE = {"MODEL.META_ARCHITECTURE": "SegFormer", "MODEL.BACKBONE.NAME": "CLIPViT"}
RESULT = {"metrics": {}, **dict.fromkeys(("file", "sha256", "dataset", "split", "protocol"), "a")}
TOKEN = "sem_seg_head.trusty_token"
CASES = {
    "no config": (lambda f: (f / "config.yaml").unlink(), "found no config.yaml in this folder"),
    "no tensors": (lambda f: (f / "model.safetensors").unlink(), "found no model.safetensors in"),
    "no classes": (lambda f: (f / "vocabulary.json").unlink(), "found no vocabulary.json in this"),
    "no CLIP": (lambda f: (f / "clip" / "tiny-clip.json").unlink(), "found no clip/tiny-clip.json"),
    "newer": (describe(format=2), "found format 2, expected 1; .* update tagclip"),
    "no number": (describe(format="1"), "tagclip.json: cannot be read"),
    "another": (describe(architecture=ARCHITECTURE), "META_ARCHITECTURE 'TagCLIP' .*'SegFormer'"),
    "config of another": (
        replaced("config.yaml", "META_ARCHITECTURE: TagCLIP", "META_ARCHITECTURE: SegFormer"),
        "found MODEL.META_ARCHITECTURE 'SegFormer' in config.yaml, expected 'TagCLIP'",
    ),
    "a file elsewhere": (describe(files=["clip/../../x"]), "'clip/../../x' is no file in clip/"),
    "above the tokenizer": (
        describe(files=["clip/tokenizer/.."]), "'clip/tokenizer/..' is no file in clip/",
    ),
    "a folder in it": (describe(files=["clip/tokenizer/a/b"]), "'clip/tokenizer/a/b' is no file"),
    "clip/..": (describe(files=["clip/.."]), "'clip/..' is no file in clip/"),
    "a line break": (describe(files=["clip/a\n"]), r"'clip/a\\n' is no file in clip/"),
    "no result": (describe(results=[3]), "tagclip.json: cannot be read .* 3 is no result"),
    "no metrics": (describe(results=[RESULT | {"metrics": None}]), ".metrics.: None, .* no result"),
    "a text": (describe(results=[RESULT | {"metrics": {"mIoU": "a"}}]), "'file': .* is no result"),
    "a checksum": (describe(weights_sha256="a\nb"), r"sha256 is .*, expected 'a\\nb' as"),
    "any CLIP": (describe(clip={}), "tagclip.json: cannot be read .*sha256 of clip is None"),
    "other classes": (
        replaced("vocabulary.json", '"dog"', '"cow"'),
        "vocabulary.json: sha256 is .*, expected '[0-9a-f]{64}' as tagclip.json says",
    ),
    "a list": (lambda f: (f / "tagclip.json").write_text("[]"), "tagclip.json: cannot be read"),
    "deep": (lambda f: (f / "tagclip.json").write_text("[" * 9**5), "tagclip.json: cannot be read"),
    "cut json": (truncated("tagclip.json"), "tagclip.json: cannot be read"),
    "no yaml": (lambda f: (f / "config.yaml").write_text("a: ["), "config.yaml: is no readable"),
    "tags": (
        lambda f: (f / "config.yaml").write_text("a: !!python/name:os.system"),
        "config.yaml: is no readable config",
    ),
    "cut tensors": (truncated("model.safetensors"), r"file is incomplete \(\d+ of \d+ bytes\)"),
    "cut header": (truncated("model.safetensors", 0.001), "model.safetensors: file is incomplete"),
    "one bit": (flipped, "model.safetensors: sha256 is .*, expected .* as tagclip.json says"),
    "fewer": (tensors(lambda s: s.pop(TOKEN)), f"{TOKEN}: found nothing, expected 1x"),
    "more": (tensors(lambda s: s.update(x=s[TOKEN].clone())), "x: found 1x.*, expected nothing"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_damaged_folder(case: str, folder: Path) -> None:
    damage, message = CASES[case]
    damage(folder)
    with pytest.raises(TagCLIPError, match=message) as error:
        TagCLIPPredictor.from_pretrained(folder)
    assert len(str(error.value).splitlines()) == 1 and str(folder) in str(error.value)


def test_folders_of_others(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    text = '{"architectures": ["SegformerForSemanticSegmentation"]}'
    (tmp_path / "other" / "config.json").write_text(text)
    messages = {
        "run": r"that of a run; name one of its checkpoints, such as .*model_final\.pth",
        "empty": "expected one that tagclip publish wrote",
        "other": "says 'SegformerForSemanticSegmentation'; this is a model of another library",
    }
    for name, message in messages.items():
        with pytest.raises(CheckpointError, match=f"no tagclip.json in this folder.*{message}"):
            TagCLIPPredictor.from_pretrained(tmp_path / name)


def test_only_what_was_written_before_is_replaced(
    predictor: TagCLIPPredictor, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="found a model .* replace it with --overwrite"):
        predictor.save_pretrained(folder)
    (folder / "clip" / "left").touch()
    assert predictor.save_pretrained(folder, overwrite=True) == folder
    assert not (folder / "clip" / "left").exists() and TagCLIPPredictor.from_pretrained(folder)
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").touch()
    (folder / "note").touch()
    with pytest.raises(CheckpointError, match=".git/HEAD, note beside the model .* move that"):
        predictor.save_pretrained(folder, overwrite=True)
    assert (folder / "note").exists() and TagCLIPPredictor.from_pretrained(folder)
    for name, found in (("run", "other files"), ("run/model_final.pth", "a file")):
        for overwrite in (False, True):
            with pytest.raises(CheckpointError, match=f"found {found} there, expected an empty"):
                predictor.save_pretrained(tmp_path / name, overwrite=overwrite)
    (tmp_path / "empty").mkdir()
    assert predictor.save_pretrained(tmp_path / "empty")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "model", "empty"}


def test_a_folder_is_there_as_a_whole_or_not_at_all(
    predictor: TagCLIPPredictor, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_checkpoint(folder)["model"]

    def fill(path: Path, *_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving.shutil, "copyfile", fill)
    monkeypatch.setattr(Path, "write_bytes", fill)
    for name in ("model", "new"):
        with pytest.raises(CheckpointError, match=f"{name}: cannot be written .No space left"):
            predictor.save_pretrained(tmp_path / name, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"run", "model"}
    assert read_checkpoint(folder)["model"].keys() == before.keys()


def test_places_that_are_no_plain_folder(
    predictor: TagCLIPPredictor, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = tmp_path / "links"
    links.mkdir()
    (links / "model").symlink_to(folder)
    (links / "circle").symlink_to(links / "circle")
    assert predictor.save_pretrained(links / "model", overwrite=True) == folder
    assert (links / "model").is_symlink() and TagCLIPPredictor.from_pretrained(folder)
    # From Python 3.13 on, a link that leads to itself is a file.
    what = "cannot be a folder|found a file there"
    for name in ("circle", "a\0b"):
        with pytest.raises(CheckpointError, match=f"({what}).* name another place"):
            predictor.save_pretrained(links / name)
    assert {path.name for path in links.iterdir()} == {"model", "circle"}
    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "below")
    for name in (".", "", ".."):
        with pytest.raises(CheckpointError, match="here.*: found the current folder"):
            predictor.save_pretrained(name)
    assert Path.cwd() == tmp_path / "here" / "below"
    assert predictor.save_pretrained("new") and predictor.save_pretrained("../beside/../other")
    assert {path.name for path in (tmp_path / "here").iterdir()} == {"below", "other"}


@pytest.mark.parametrize(
    ("name", "is_hub"),
    [
        ("somebody/model", True),
        ("somebody/model-v1.0", True),
        ("some-body/model@refs/pr/1", True),
        ("hf-hub:run/model", True),
        ("run/modle", False),
        ("somebody/model.pth", False),
        ("somebody/model.safetensors", False),
        ("./somebody/model", False),
        ("/somebody/model", False),
        ("~/model", False),
        ("a/b/c", False),
        ("model", False),
        ("../model", False),
        ("", False),
    ],
)
def test_what_names_a_model_of_the_hub(
    name: str, is_hub: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path)
    assert is_hub_name(name) is is_hub


def test_revisions() -> None:
    assert split_name("hf-hub:a/b@v1") == ("a/b", "v1") and split_name("a/b") == ("a/b", None)


@pytest.mark.parametrize("name", ["run/model_finl", "nowhere", "run/x/y", "\0", "x" * 300])
def test_neither_here_nor_on_the_hub(
    name: str, predictor: TagCLIPPredictor, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="which is not here, expected") as error:
        find_weights(tmp_path / name)
    assert ("did you mean model_final.pth?" in str(error.value)) == (name == "run/model_finl")
