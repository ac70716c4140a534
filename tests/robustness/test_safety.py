"""Loading executes nothing, unpacks nothing huge, and leaves the folders that a user names alone.

Every payload would create a folder, the canary; a control shows that it does when it runs. Pickles
in checkpoints and CLIP weights: `test_reading.py`, `test_clip_bad_files.py`,
`test_bad_inputs_weights.py`.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog
from helpers.bench import Bench, files_below, refused, run_process
from helpers.clip_files import random_clip, save_archive, sha256, tiny_config
from helpers.miniature_trees import make_voc
from helpers.miniature_trees import run_script as run_prepare
from helpers.paths import TOOLS
from helpers.tiny_run import load_tool
from helpers.toy_dataset import forget, vocabulary_tree, write_json
from PIL import Image

from tagclip import Vocabulary, load_config, register_zero_shot_sem_seg
from tagclip.checkpoint import read_checkpoint
from tagclip.data.datasets.manifest import LabelManifest
from tagclip.errors import CheckpointError, ConfigError, DatasetError, TagCLIPError
from tagclip.evaluation.results import read_metrics
from tagclip.modeling.clip import CLIPSource, read_clip_weights


class Payload:
    """Reading it as a pickle makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.mkdir, (self.folder,)


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A folder that no test may create."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "code was executed"


def fails(call: Callable[[], Any], *parts: Any) -> None:
    """One line that has the parts."""
    with pytest.raises(TagCLIPError) as error:
        call()
    assert len(str(error.value).splitlines()) == 1
    missing = [part for part in parts if str(part) not in str(error.value)]
    assert not missing, str(error.value)


def test_the_payload_is_dangerous(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "made")))
    assert (tmp_path / "made").is_dir()


# Tools


def convert(*arguments: Any) -> Callable[[], None]:
    tool = load_tool(TOOLS / "convert_checkpoint.py")
    return lambda: tool.main(tool.parse_arguments(list(map(str, arguments))))


@pytest.mark.parametrize("name", ["in.pth", "in.pt", "in.bin", "in.pkl"])
@pytest.mark.parametrize("kind", ["saved", "plain"])
def test_the_converter_executes_nothing(name: str, kind: str, tmp_path: Path, canary: Path) -> None:
    path, content = tmp_path / name, {"state_dict": {"decode_head.x": Payload(canary)}}
    if kind == "saved":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    refused(convert(path, tmp_path / "out.pt"), f"CheckpointError: {path}: ", "unsafe")
    assert sorted(file.name for file in tmp_path.iterdir()) == [name]


def test_the_converter_executes_no_archive(tmp_path: Path, canary: Path) -> None:
    """Not even one that the user vouches for."""
    whole, path = tmp_path / "whole.pt", tmp_path / "in.pt"
    save_archive(random_clip(), whole)
    changed = repacked(whole, {"/data.pkl": pickle.dumps(Payload(canary), protocol=2)})
    path.write_bytes(changed)
    call = convert(path, tmp_path / "out.safetensors", "--sha256", sha256(path))
    refused(call, f"CheckpointError: {path}: ", "unsafe")
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("name", ["export_model.py", "demo.py"])
def test_tools_execute_no_weights(name: str, bench: Bench, canary: Path) -> None:
    path, out = bench.root / "in.pth", bench.root / "out"
    torch.save({"model": {"a": Payload(canary)}}, path)
    tool = load_tool(TOOLS / name)
    words = ["--weights", path, "--vocab", "cat, dog", "--output", out]
    if name == "demo.py":
        words += ["--input", bench.save_image("a.png")]
    args = tool.parse_args(list(map(str, words)))
    refused(lambda: getattr(tool, "run", tool.main)(args), f"CheckpointError: {path}: ", "unsafe")
    assert not out.exists()


def test_an_export_reads_no_file_elsewhere(tmp_path: Path) -> None:
    """A model that names tensors in a file outside its folder is refused, in one line."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    secret, folder = tmp_path / "secret.bin", tmp_path / "export"
    secret.write_bytes(np.ones(4, np.float32).tobytes())
    folder.mkdir()
    tensor = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [4], bytes(16), raw=True)
    onnx.external_data_helper.set_external_data(tensor, "../secret.bin")
    tensor.ClearField("raw_data")
    output = onnx.helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, [4])
    node = onnx.helper.make_node("Identity", ["w"], ["scores"])
    graph = onnx.helper.make_graph([node], "g", [], [output], [tensor])
    model = onnx.helper.make_model(graph, ir_version=8)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    digest = hashlib.sha256(model.SerializeToString()).hexdigest()
    files = {"model.onnx": {"sha256": digest}}
    whole = json.dumps(
        {
            "class_names": ["a"],
            "channel_order": "RGB",
            "background_threshold": None,
            "resize": {"short_side": 8, "long_side": 0, "library": "pil"},
            "windows": {"size": None, "stride": None},
            "files": files,
        }
    )
    for recipe, found in ((whole, "secret.bin"), ("[" * 9999, "")):
        (folder / "model.json").write_text(recipe)
        ended = run_process(tmp_path, "run_onnx.py", folder, tmp_path / "a.png", "out.png")
        assert ended.returncode == 1 and len(ended.stderr.splitlines()) == 1, ended.stderr
        assert str(folder) in ended.stderr and found in ended.stderr
    assert not (tmp_path / "out.png").exists()


# Text files


def test_a_yaml_executes_nothing(tmp_path: Path, canary: Path) -> None:
    path = tmp_path / "config.yaml"
    for tag in ("object/apply:os.mkdir", "object/new:os.mkdir", "name:os.mkdir", "module:os"):
        path.write_text(f"SEED: !!python/{tag} ['{canary}']\n")
        fails(lambda: load_config(path), path, "without tags")
    yaml.unsafe_load(f"!!python/object/apply:os.mkdir ['{tmp_path}/made']")
    assert (tmp_path / "made").is_dir(), "the text is harmless: it tests nothing"


DEEP = {
    "brackets": "[" * 100_000,
    "closed": "[" * 900 + "]" * 900,
    "just too deep": '{"format": ' + "[" * 70 + "]" * 70 + "}",
}


@pytest.mark.parametrize("text", DEEP.values(), ids=DEEP)
def test_deep_nesting_ends_in_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text(text)
    (tmp_path / "config.json").write_text(text)
    torch.save(dict(random_clip().state_dict()), tmp_path / "pytorch_model.bin")
    for read in (
        Vocabulary.from_json,
        LabelManifest.read,
        read_metrics,
        load_config,
        lambda path: CLIPSource(str(path)).config,
    ):
        fails(lambda read=read: read(path), path)
    fails(lambda: read_clip_weights(tmp_path), tmp_path / "config.json")


def test_a_checkpoint_with_a_deep_config_ends_in_one_line(bench: Bench) -> None:
    """libyaml's parser would end the process."""
    content = torch.load(bench.weights, weights_only=True)
    content["tagclip"]["config"] = "[" * 200_000
    torch.save(content, bench.weights)
    refused(bench.evaluation(bench.weights), f"{bench.weights}: found no config in it")
    line = bench.demo("--input", bench.save_image("a.png"), "--output", bench.root / "out")
    assert line.startswith(f"CheckpointError: {bench.weights}: found no config in it")


def config_error(key: str) -> ConfigError:
    with pytest.raises(ConfigError) as error:
        load_config("", [key, "1"])
    return error.value


def test_control_characters_reach_no_terminal(tmp_path: Path) -> None:
    """A class name could clear the screen; half a surrogate pair cannot be written anywhere."""
    for name in ("\x1b[2J", "a\0b", "cat\ud800"):
        path = write_json(tmp_path / "v.json", vocabulary_tree(["dog", name]))
        fails(lambda path=path: Vocabulary.from_json(path), path, "control character")
    for error in (DatasetError("\x1b[2J\r\u2028: é"), config_error("\x1b[2J")):
        assert str(error).isprintable()
    assert "é" in str(DatasetError("é\0"))


def test_a_word_that_is_no_utf8_is_no_control_character(bench: Bench) -> None:
    """Of a script in Latin-1 or a terminal with another locale; Python hands on its bytes so."""
    for word in ("stra\udcdfe", "stra\udcc3\udc9fe"):
        line = bench.demo("--vocab", f"sky, {word}", "--input", bench.save_image("a.png"))
        byte = f"0x{ord(word[4]) - 0xDC00:x}"
        assert "VocabularyError" in line and f"holds the byte {byte}, which is not UTF-8" in line
        assert "as UTF-8" in line and "control" not in line


# Paths


def test_a_list_of_images_leads_nowhere_else(tmp_path: Path) -> None:
    for place in ("data/images", "data/labels", "elsewhere"):
        (tmp_path / place).mkdir(parents=True)
        Image.new("L", (4, 4)).save(tmp_path / place / "secret.png")
    register = vocabulary_tree(["cat", "dog"])
    for number, listed in enumerate(("../../elsewhere/secret", str(tmp_path / "elsewhere/secret"))):
        (tmp_path / "list.txt").write_text(f"secret\n{listed}\n")
        name = f"listed_{number}"
        register_zero_shot_sem_seg(
            name,
            tmp_path / "data/images",
            tmp_path / "data/labels",
            write_json(tmp_path / "v.json", register),
            image_ext="png",
            image_list=tmp_path / "list.txt",
        )
        fails(lambda name=name: DatasetCatalog.get(name), "1 listed names without image", listed)
        forget(name)


def test_a_prepare_script_writes_nowhere_else(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "root/VOCdevkit/VOC2012/elsewhere"
    make_voc(root)
    outside.mkdir()
    Image.new("RGB", (4, 4)).save(outside / "secret.jpg")
    Image.new("L", (4, 4)).save(outside / "secret.png")
    names = root / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt"
    for listed in ("../elsewhere/secret", str(outside / "secret")):
        names.write_text(f"{names.read_text()}{listed}\n")
    before = set(files_below(outside))
    run_prepare("prepare_voc", root, "--only", "voc2012_val")
    written = root / "VOCdevkit/VOC2012/annotations_detectron2/val.txt"
    assert "secret" not in written.read_text()
    assert set(files_below(outside)) == before


@pytest.mark.parametrize("file", ["../secret.gz", "/etc/hostname", "", ".", "..", 3, None, ["a"]])
def test_a_model_json_names_no_file_elsewhere(file: Any, tmp_path: Path) -> None:
    (tmp_path / "secret.gz").write_bytes(gzip.compress(b"merges"))
    (tmp_path / "model").mkdir()
    path = tmp_path / "model" / "model.json"
    write_json(path, tiny_config(text_tokenizer_kwargs={"bpe_path": file}))
    fails(lambda: CLIPSource(str(path)).tokenize(["cat"]), path, "bpe_path")


@pytest.mark.parametrize("name", ["../other.pth", "/etc/passwd", "..", "a\0b", "x" * 300])
def test_last_checkpoint_names_a_file_beside_it(name: str, bench: Bench) -> None:
    _ = bench.weights
    (bench.output / "last_checkpoint").write_text(name)
    (bench.root / "other.pth").write_bytes(bench.weights.read_bytes())
    refused(bench.training(resume=True), "CheckpointError: ", "expected the name of a checkpoint")


def test_names_in_an_archive_are_no_paths(tmp_path: Path) -> None:
    """Members are looked up, never unpacked."""
    folder, whole = tmp_path / "a/b", tmp_path / "whole.pth"
    folder.mkdir(parents=True)
    torch.save({"model": {"x": torch.ones(2)}}, whole)
    path = folder / "in.pth"
    added = {"../../escaped.txt": b"x", f"{tmp_path}/escaped.txt": b"x", "whole/../escaped": b"x"}
    path.write_bytes(repacked(whole, {}, added))
    before = files_below(tmp_path)
    with suppress(CheckpointError):
        assert read_checkpoint(path)["model"]["x"].sum() == 2
    assert files_below(tmp_path) == before


def repacked(path: Path, changes: dict[str, bytes], added: dict[str, bytes] | None = None) -> bytes:
    """An archive with other content of the records with these endings, and with more records."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(buffer, "w") as target:
        for name in source.namelist():
            end = next((end for end in changes if name.endswith(end)), None)
            target.writestr(name, source.read(name) if end is None else changes[end])
        for name, content in (added or {}).items():
            target.writestr(name, content)
    return buffer.getvalue()
