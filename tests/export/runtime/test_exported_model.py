"""An export with words as an input, run with words that it was not made with."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from detectron2.config import CfgNode
from helpers.clip_files import fails, random_clip, sha256
from helpers.tiny_export import WORDS, noise, run_without_torch, save_run
from helpers.tiny_export import checkpoint as checkpoint
from helpers.tiny_export import clip_weights as clip_weights
from helpers.tiny_export import example as example
from helpers.tiny_export import tool as tool
from helpers.tiny_run import changed, exit_of
from PIL import Image
from safetensors.torch import save_file

from tagclip import TagCLIPPredictor
from tagclip.errors import ConfigError, VocabularyError
from tagclip.export.runtime.class_vectors import ClassVectors
from tagclip.export.runtime.exported_model import ExportedModel

pytest.importorskip("onnxruntime")


def export(tool: ModuleType, checkpoint: Path, folder: Path, *opts: object) -> dict:
    words = ["--weights", checkpoint, "--words", "input", "--vocab", WORDS, "--output", folder]
    return tool.main(tool.parse_args([*map(str, words), *map(str, opts)]))


def test_any_words_equal_the_predictor(tool: ModuleType, checkpoint: Path, tmp_path: Path) -> None:
    opts = ["MODEL.CLIP.TEMPLATES", "vild14", "INPUT.MAX_SIZE_TEST", 128]
    folder = tmp_path / "export"
    recipe = export(tool, checkpoint, folder, *opts)
    files = {"model.onnx", "text.onnx", "merges.txt.gz", "vectors.npz"}
    assert {path.name for path in folder.iterdir()} == {*files, "model.json"}
    assert {name: file["sha256"] for name, file in recipe["files"].items()} == {
        name: sha256(folder / name) for name in files
    }
    model, predictor = ExportedModel(folder), TagCLIPPredictor.from_checkpoint(checkpoint, opts)
    words = ["cat", "the stop sign's pole", "café", "猫", "two\twords", "word " * 40, "x"]
    many = [f"{word} {index}" for index in range(100) for word in WORDS.split(", ")]
    for names in (["cat"], words, many):
        predictor.set_vocabulary(names)
        classes, asked = model.encode(names), predictor.vocabulary
        assert list(classes.names) == asked.names
        assert classes.seen.tolist() == list(asked.seen)
        expected = predictor.model.text_bank(asked).numpy()
        np.testing.assert_allclose(classes.vectors, expected, rtol=0, atol=2e-6)
        # Windows side by side, one on top of the other, and a single one.
        for size in [(90, 230), (150, 100), (40, 64)]:
            image = noise(1, size)[0].transpose(1, 2, 0)
            labels = predictor(image[:, :, ::-1])["sem_seg_labels"].numpy()
            assert (model.label(image, classes) != labels).mean() < 1e-3
    assert len(np.unique(labels)) > 9
    predictor.set_vocabulary(WORDS.split(", "))
    default = model.read()
    assert list(default.names) == WORDS.split(", ") and default.seen.tolist() == [
        False,
        True,
        False,
    ]
    assert (default.vectors == predictor.model.text_bank(predictor.vocabulary).numpy()).all()


def test_words_without_torch(
    tool: ModuleType, example: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    folder, image, out = tmp_path / "export", tmp_path / "a.png", tmp_path / "out.png"
    export(tool, checkpoint, folder)
    Image.fromarray(noise(1, (80, 96))[0].transpose(1, 2, 0)).save(image)
    words, saved = 'dog, "sofa, blue", sky', tmp_path / "words.npz"
    shown = run_without_torch(folder, image, out, "--words", words, "--save-vectors", saved)
    labels = np.array(Image.open(out))
    predictor = TagCLIPPredictor.from_checkpoint(checkpoint)
    predictor.set_vocabulary(["dog", "sofa, blue", "sky"])
    expected = predictor(image)["sem_seg_labels"].numpy()
    assert (labels != expected).mean() < 1e-3 and len(np.unique(labels)) > 1
    assert "'sofa, blue': '" in shown
    listed = tmp_path / "words.txt"
    listed.write_text('dog\n"sofa, blue"\n\nsky\n')
    for option in (["--vectors", saved], ["--words-file", listed]):
        assert run_without_torch(folder, image, out, *option) == shown
        assert (np.array(Image.open(out)) == labels).all()
    default = run_without_torch(folder, image, out)
    assert all(f"'{word}': '" in default for word in WORDS.split(", "))

    def refused(parts: str, *options: object) -> None:
        out.unlink(missing_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["run_onnx.py", *map(str, (folder, image, out, *options))])
            line = exit_of(example.invoke_main)
        assert isinstance(line, str) and len(line.splitlines()) == 1, line
        assert all(part in line for part in parts.split("|")), line
        assert not out.exists()

    refused("class name 2 is empty", "--words", "a,,b")
    refused("is empty", "--words", " ")
    refused("more than once", "--words", "cat, CAT")
    refused("'cafÃ©'|write it anew", "--words", "cafÃ©")
    refused("expected a comma", "--words", '"cat" dog')
    listed.write_text("\n")
    refused("class names: found none", "--words-file", listed)
    refused("nowhere.txt: cannot be read", "--words-file", tmp_path / "nowhere.txt")
    refused("nowhere.npz: found no such file, expected", "--vectors", tmp_path / "nowhere.npz")
    # A file of this run is not replaced.
    for path in (image, saved.with_suffix(""), folder / "vectors.npz", folder / "new.npz"):
        refused(f"--save-vectors {path}: expected", "--save-vectors", path)
    refused("x.npz: cannot be written", "--save-vectors", image / "x.npz", "--words", "cat")
    other = ClassVectors(("cat",), np.eye(1, 32, dtype=np.float32), np.array([True]), "0" * 64)
    saved.write_bytes(other.content())
    refused(f"{saved}: found vectors of another CLIP", "--vectors", saved)
    recipe = json.loads((folder / "model.json").read_text())
    for key, value, found in (
        ("dim", 16, "32 numbers each, expected 16"),
        ("clip", None, "words without clip"),
        ("templates", 5, "model.json: found TypeError"),
    ):
        content = recipe | {"words": recipe["words"] | {key: value}}
        if value is None:
            del content["words"][key]
        (folder / "model.json").write_text(json.dumps(content))
        refused(found, *(["--words", "cat"] if key == "templates" else []))
    (folder / "model.json").write_text(json.dumps(recipe))
    for name in ("text.onnx", "merges.txt.gz", "vectors.npz"):
        content = (folder / name).read_bytes()
        for damage in (b"", content[:-9], content + b"0"):
            (folder / name).write_bytes(damage)
            options = [] if name == "vectors.npz" else ["--words", "cat"]
            refused(f"{folder / name}: found |export again", *options)
        (folder / name).write_bytes(content)


@pytest.mark.slow
def test_vectors_of_another_clip(
    tool: ModuleType, checkpoint: Path, tiny_cfg: CfgNode, tmp_path: Path
) -> None:
    """Of the same sizes, so that nothing but the fingerprint tells them apart."""
    other = tmp_path / "other.safetensors"
    save_file(random_clip(seed=7).state_dict(), other)
    export(tool, checkpoint, tmp_path / "one")
    weights = save_run(changed(tiny_cfg, "MODEL.CLIP.PRETRAINED", str(other)))
    export(tool, weights, tmp_path / "two")
    with pytest.raises(VocabularyError, match="found vectors of another CLIP"):
        ExportedModel(tmp_path / "one").read(tmp_path / "two" / "vectors.npz")


def test_what_cannot_take_words_is_refused(
    tool: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "export"
    for options, parts in (
        (["--format", "onnx", "torchscript"], ["--format onnx torchscript", "expected onnx"]),
        (["MODEL.CLIP.SYNONYMS", "max"], ["MODEL.CLIP.SYNONYMS", "bake the words in"]),
    ):
        fails(ConfigError, lambda o=options: export(tool, checkpoint, folder, *o), *parts)
    assert not folder.exists()
