"""tools/export_model.py, its json, and tools/run_onnx.py on what it writes."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
from detectron2.config import CfgNode
from helpers.clip_files import fails
from helpers.full_disk import largest_file
from helpers.tiffs import tiff
from helpers.tiny_export import (
    SQUARE,
    THIN,
    TOLERANCE,
    WIDE,
    WORDS,
    assert_equal,
    eager,
    load,
    noise,
    run_without_torch,
    save_run,
)
from helpers.tiny_export import checkpoint as checkpoint
from helpers.tiny_export import clip_weights as clip_weights
from helpers.tiny_export import example as example
from helpers.tiny_export import tool as tool
from helpers.tiny_run import changed, exit_of
from PIL import Image

from tagclip import TagCLIPError, TagCLIPPredictor
from tagclip.checkpoint import read_checkpoint
from tagclip.checkpoint.metadata import saved_provenance
from tagclip.data.image_io import read_image
from tagclip.errors import ConfigError, DatasetError, OutputError, VocabularyError
from tagclip.export import onnx as exporting
from tagclip.export.recipe import window_recipe
from tagclip.export.runtime import images as reading
from tagclip.modeling.inference.fusion import InferenceSettings
from tagclip.utils.png_notes import read_notes


def export(tool: ModuleType, *args: object) -> dict:
    return tool.main(tool.parse_args([str(arg) for arg in args]))


def test_tool_and_example(
    tool: ModuleType, checkpoint: Path, repository: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    folder, vocabulary = tmp_path / "export", tmp_path / "words.txt"
    vocabulary.write_text(WORDS.replace(", ", "\n") + "\n\n")
    options = ["--weights", checkpoint, "--vocab-file", vocabulary, "--output", folder]
    recipe = export(tool, *options, "--dynamic", "MODEL.TAGCLIP.TEST.SEEN_BIAS", 0.05)
    assert recipe == json.loads((folder / "model.json").read_text())
    assert recipe["class_names"] == WORDS.split(", ")
    assert recipe["seen"] == [False, True, False]
    assert recipe["windows"]["size"] == [64, 64] and recipe["windows"]["stride"] == [48, 48]
    found = {path.name for path in folder.iterdir()}
    assert found == {"model.onnx", "model.ts", "model.json"} == {*recipe["files"], "model.json"}
    for name, file in recipe["files"].items():
        content = (folder / name).read_bytes()
        assert file["sha256"] == hashlib.sha256(content).hexdigest()
        assert file["largest_difference"] <= TOLERANCE
    sha256 = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert recipe["fingerprints"]["checkpoint_sha256"] == sha256
    metadata = read_checkpoint(checkpoint)["tagclip"]
    assert recipe["provenance"] == saved_provenance(metadata, checkpoint).to_json()
    assert recipe["provenance"]["stages"]

    seen_bias = ["MODEL.TAGCLIP.TEST.SEEN_BIAS", 0.05]
    whole = load(checkpoint, *seen_bias)
    whole.set_vocabulary(WORDS.split(", "))
    for kind, name in tool.FILES.items():
        run = exporting.RUNNERS[kind]((folder / name).read_bytes())
        for images in (noise(1, SQUARE), noise(3, WIDE), noise(1, THIN)):
            assert_equal(run(images), eager(whole, images))

    predictor = TagCLIPPredictor.from_checkpoint(checkpoint, seen_bias)
    predictor.set_vocabulary(WORDS.split(", "))
    # Larger and smaller than a window along either side, and resized.
    for size in [(90, 230), (150, 100)]:
        image, labels = tmp_path / "image.png", tmp_path / "labels.png"
        cv2.imwrite(str(image), noise(1, size)[0].transpose(1, 2, 0))
        run_without_torch(folder, image, labels)
        expected = predictor(image)["sem_seg_labels"].numpy()
        found = cv2.imread(str(labels), cv2.IMREAD_UNCHANGED)
        assert found.shape == expected.shape == size
        assert (found != expected).mean() < 1e-3 and len(np.unique(expected)) > 1
        words = dict(enumerate(WORDS.split(", ")))
        assert read_notes(labels) == ("", {k: words[k] for k in np.unique(found) if k in words})


def odd_images(folder: Path) -> Iterator[Path]:
    """Files whose pixels depend on how they are read."""
    rgb = Image.fromarray(noise(1, WIDE)[0].transpose(1, 2, 0))
    alpha, exif, gray = rgb.copy(), Image.Exif(), rgb.convert("L")
    alpha.putalpha(gray)
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        rgb.save(folder / f"turned{orientation}.jpg", exif=exif)
    exif[0x0112] = 6
    alpha.save(folder / "alpha.png", exif=exif)
    alpha.convert("LA").save(folder / "gray_alpha.png")
    rgb.quantize(9).save(folder / "palette.png", transparency=3)
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    gray.save(folder / "gray.png")
    gray.convert("1").save(folder / "bits.png")
    wide = np.random.default_rng(0).integers(0, 65536, WIDE, np.uint16)
    Image.fromarray(wide).save(folder / "sixteen.png", exif=exif)
    Image.fromarray(wide.astype(np.int32)).save(folder / "sixteen.tif")
    yield from sorted(folder.iterdir())


def test_the_example_reads_pixels_as_the_library_does(tmp_path: Path) -> None:
    files = list(odd_images(tmp_path))
    assert len(files) == 16
    for path in files:
        assert (reading.read_image(path) == read_image(path)).all(), path


def test_the_example_says_what_it_reads_otherwise(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the library does, too."""
    gray = np.arange(64, dtype=np.uint16).reshape(8, 8)
    colours = np.stack([gray] * 4, 2)
    dark, bands = "16-bit image, dark as read: brightest value", "the first 3 of 4 bands are read"
    files = {
        "gray12.png": (gray * 65, [dark]),
        "gray16.png": (gray * 1040, []),
        "gray12.tif": (gray * 65, [dark]),
        "rgb12.tif": (colours[:, :, :3] * 65, [dark]),
        "bands12.tif": (colours * 65, [dark, bands]),
        "bands.tif": (colours.astype(np.uint8) * 4, [bands]),
    }
    for name, (values, expected) in files.items():
        path = tmp_path / name
        if values.ndim == 3:
            path.write_bytes(tiff(values, [0] * (values.shape[2] - 3) or None))
        else:
            Image.fromarray(values).save(path)
        caplog.clear()
        pixels = reading.read_image(path)
        lines = [record.getMessage() for record in caplog.records]
        assert len(lines) == len(expected), name
        assert (pixels == read_image(path)).all(), name
        for line, text in zip(lines, expected, strict=True):
            assert line.startswith(f"{path}: {text}")


@pytest.mark.slow
def test_the_example_ends_with_one_line(
    tool: ModuleType,
    example: ModuleType,
    checkpoint: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture,
) -> None:
    folder, image, labels = tmp_path / "export", tmp_path / "a.png", tmp_path / "labels.png"
    options = ["--weights", checkpoint, "--vocab", WORDS, "--format", "onnx", "--output"]
    opts = ["INPUT.MAX_SIZE_TEST", 128, "INPUT.RESIZE", "pil"]
    export(tool, *options, folder, *opts)
    Image.fromarray(noise(1, WIDE)[0].transpose(1, 2, 0)).save(image)

    def run(*words: object) -> object:
        """What the script ends with."""
        capfd.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["run_onnx.py", *map(str, words)])
            return exit_of(example.invoke_main)

    def refused(parts: str, *words: object) -> None:
        line = run(*words)
        assert isinstance(line, str) and len(line.splitlines()) == 1, line
        assert all(part in line for part in parts.split("|")), line
        output = capfd.readouterr()
        assert not output.out and not output.err, output
        assert not labels.exists() and not list(tmp_path.glob(".*"))

    assert run("--help") == 0 and "folder with model.json" in capfd.readouterr().out
    assert run() == 2
    refused("nowhere.png: found no such file, expected an image", folder, "nowhere.png", labels)
    (tmp_path / "bad.png").write_bytes(image.read_bytes()[:300])
    refused("bad.png: found OSError: |truncated", folder, tmp_path / "bad.png", labels)
    Image.fromarray(np.full((64, 64), -1.0, np.float32)).save(tmp_path / "float.tif")
    refused("float32 values -1.0..-1.0", folder, tmp_path / "float.tif", labels)
    Image.new("RGB", (30, 200)).save(tmp_path / "thin.png")
    refused("thin.png (200, 30): found |expected pixels for the input of model.json",
            folder, tmp_path / "thin.png", labels)  # fmt: skip
    refused("model.json: found no such file, expected|export again", tmp_path, image, labels)
    refused("found the suffix '.jpg', expected a PNG", folder, image, tmp_path / "a.jpg")
    refused("a.png/x.png: cannot be written (Not a dir", folder, image, image / "x.png")
    for option in ("--words=cat", f"--vectors={image}", f"--save-vectors={tmp_path}/a.npz"):
        refused("model.json: found a model with its words baked in|--words input",
                folder, image, labels, option)  # fmt: skip
    for name in ("w.txt", "classes.json"):
        line = f"--vocab: found {name}, a file|give it as --vocab-file"
        refused(line, folder, image, labels, f"--vocab={name}")
    refused("a.png: found the image itself|expected another file", folder, image, image)
    content = (folder / "model.onnx").read_bytes()
    # Another constant of the graph.
    other = content.replace(b"batch", b"BATCH")
    for name, damages in (
        ("model.json", (b"{", b"[]", b"{}", b"\xff")),
        ("model.onnx", (b"", b"onnx", other)),
    ):
        content = (folder / name).read_bytes()
        for damage in damages:
            (folder / name).write_bytes(damage)
            refused(f"{folder / name}: found |export again", folder, image, labels)
        (folder / name).unlink()
        refused(f"{folder / name}: found |export again", folder, image, labels)
        (folder / name).write_bytes(content)
    predictor = TagCLIPPredictor.from_checkpoint(checkpoint, opts)
    predictor.set_vocabulary(WORDS.split(", "))
    expected = predictor(image)["sem_seg_labels"].numpy()
    recipe = json.loads((folder / "model.json").read_text())
    assert (recipe["class_ids"], recipe["ignore_label"]) == ([0, 1, 2], 255)
    for ids, ignored, mode in (
        ([0, 1, 2], 255, "L"),
        ([9, 4, 200], 0, "L"),
        ([9, 4, 256], 0, "I;16"),
        ([9, 65535, 0], 255, "I;16"),
        ([1, 2, 3], 65535, "I;16"),
        # Of an earlier version, which had none.
        (None, 255, "L"),
    ):
        content = recipe | {"class_ids": ids, "ignore_label": ignored}
        if ids is None:
            del content["class_ids"], content["ignore_label"]
        for threshold, values in ((None, ids or [0, 1, 2]), (2.0, [ignored] * 3)):
            text = json.dumps(content | {"background_threshold": threshold})
            (folder / "model.json").write_text(text)
            assert run(folder, image, labels) is None
            with Image.open(labels) as picture:
                assert picture.mode == mode
                assert (np.array(picture) != np.array(values)[expected]).mean() < 1e-3


def test_defaults_are_the_window_and_classes_of_the_config(
    tool: ModuleType, tiny_cfg: CfgNode, clip_weights: str, tmp_path: Path
) -> None:
    cfg = changed(tiny_cfg, "MODEL.CLIP.PRETRAINED", clip_weights)
    weights, config = save_run(cfg), tmp_path / "config.yaml"
    config.write_text(cfg.dump())
    options = ["--config-file", config, "--weights", weights, "--format", "torchscript"]
    recipe = export(tool, *options, "--output", tmp_path / "export")
    assert recipe["class_names"] == ["cat", "dog", "grass", "sky", "sofa"]
    assert recipe["seen"] == [True, False, True, False, True]
    assert recipe["input"]["size"] == [64, 64]
    assert not (tmp_path / "export" / "model.onnx").exists()
    other = export(
        tool, *options, "--output", tmp_path / "other", "--size", "32x96",
        "--vocab-from-dataset", cfg.DATASETS.TRAIN[0],
    )  # fmt: skip
    assert other["windows"]["size"] == [32, 96] and other["windows"]["stride"] == [24, 72]
    assert other["class_names"] == recipe["class_names"] and other["seen"] == recipe["seen"]


def test_window_recipe() -> None:
    settings = {"window": 512, "stride": 426, "window_batch": 1, "workspace_mib": 1}
    slide = InferenceSettings(mode="slide", output="labels", **settings)
    whole = InferenceSettings(mode="whole", output="labels", **settings)
    assert window_recipe(slide, (512, 64))["stride"] == [426, 53]
    assert window_recipe(slide, (1, 1))["stride"] == [1, 1]
    assert window_recipe(slide, None)["size"] == [512, 512]
    assert window_recipe(whole, None)["size"] is None


def test_files_that_compute_something_else_are_refused(
    tool: ModuleType, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = exporting.RUNNERS["torchscript"]

    def wrong(content: bytes):
        return lambda images: [right(content)(images)[0] + 2e-4, *right(content)(images)[1:]]

    monkeypatch.setitem(exporting.RUNNERS, "torchscript", wrong)
    options = ["--weights", checkpoint, "--vocab", WORDS, "--format", "torchscript"]
    action = lambda: export(tool, *options, "--output", tmp_path / "export")  # noqa: E731
    fails(TagCLIPError, action, "model.ts", "0.0002", "0.0001")
    assert not (tmp_path / "export").exists()


def test_mistakes(
    tool: ModuleType, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mistake(error: type[TagCLIPError], parts: list[object], *options: object) -> None:
        fails(error, lambda: export(tool, "--format", kind, "--output", output, *options), *parts)

    kind, output, missing = "torchscript", tmp_path / "export", tmp_path / "missing.txt"
    weights = ["--weights", checkpoint]
    mistake(ConfigError, ["--weights", "--config-file"])
    mistake(ConfigError, ["TEST.AUG.ENABLED"], *weights, "TEST.AUG.ENABLED", True)
    mistake(VocabularyError, [missing], *weights, "--vocab-file", missing)
    mistake(DatasetError, ["no_such"], *weights, "--vocab-from-dataset", "no_such")
    mistake(VocabularyError, [], *weights, "--vocab", "cat,,dog")
    for key, value in (("MODEL.DEVICE", "cuda"), ("MODEL.COMPILE", "True")):
        mistake(ConfigError, [f"{key}: found {value}, expected", "leave"], *weights, key, value)
    output = checkpoint
    mistake(ConfigError, ["--output", checkpoint], *weights)
    kind, output = "onnx", tmp_path / "export"
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    mistake(ConfigError, ["onnxscript", "pip install onnxscript"], *weights)
    assert not output.exists()


@pytest.mark.slow
def test_files_of_another_model_do_not_stay_beside_a_new_one(
    tool: ModuleType, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "export"

    def write(kind: str, words: str) -> dict:
        capsys.readouterr()
        options = ["--weights", checkpoint, "--output", folder, "--format", kind, "--vocab", words]
        recipe = export(tool, *options)
        assert recipe == json.loads((folder / "model.json").read_text())
        for name, file in recipe["files"].items():
            assert file["sha256"] == hashlib.sha256((folder / name).read_bytes()).hexdigest()
        assert {path.name for path in folder.iterdir()} == {*recipe["files"], "model.json"}
        return recipe

    first = write("torchscript", WORDS)
    # As an export in int8 leaves it.
    (folder / "model_int8.onnx").write_bytes(b"int8")
    first["files"]["model_int8.onnx"] = {"sha256": hashlib.sha256(b"int8").hexdigest(), "bytes": 4}
    first["int8"] = {"report": {"images": 3}}
    (folder / "model.json").write_text(json.dumps(first))
    # One model in two formats, written one after the other.
    both = write("onnx", WORDS)
    assert both["files"].keys() == {"model.onnx", "model.ts", "model_int8.onnx"}
    assert both["files"].items() >= first["files"].items() and both["int8"] == first["int8"]
    assert "Removed" not in capsys.readouterr().out
    # As other words, other weights and settings make another recipe.
    fewer = write("torchscript", "dog, cat")
    assert fewer["files"].keys() == {"model.ts"} and "int8" not in fewer
    shown = capsys.readouterr().out
    assert "Removed, of an earlier export of another model: model.onnx, model_int8.onnx\n" in shown
    # What nobody describes is nobody's to remove.
    for name, content in (("model.onnx", b"of somebody"), ("text.onnx", b"")):
        (folder / name).write_bytes(content)
        before = {path: path.read_bytes() for path in folder.iterdir()}
        parts = [f"--output {folder}: found {name}, which no model.json", "name another folder"]
        fails(ConfigError, lambda: write("torchscript", "dog, cat"), *parts)
        assert {path: path.read_bytes() for path in folder.iterdir()} == before
        (folder / name).unlink()
    # On a disk that fills up between two files, or with a folder in the place of one.
    both = write("onnx", "dog, cat")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    sizes = sorted(both["files"][name]["bytes"] for name in ("model.onnx", "model.ts"))
    options = ["--weights", checkpoint, "--output", folder, "--vocab", "tree, cow"]
    assert sizes[0] < sizes[1]
    with largest_file(sizes[1] - 1), pytest.raises(OutputError, match=r"cannot be written \("):
        export(tool, *options)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    (folder / "model.json").unlink()
    (folder / "model.json").mkdir()
    for name in both["files"]:
        (folder / name).unlink()
    with pytest.raises(OutputError, match=r"model\.json: cannot be written \(Is a directory\)"):
        export(tool, *options)
    assert [path.name for path in folder.iterdir()] == ["model.json"]
    (folder / "model.json").rmdir()
    write("torchscript", "dog, cat")
    (folder / "model.json").write_text("{")
    fails(ConfigError, lambda: write("onnx", WORDS), "found model.ts, which no model.json")


def test_size_option(tool: ModuleType) -> None:
    assert tool.parse_args(["--output", "out", "--size", "480X640"]).size == (480, 640)
    for text in ("512", "0x8", "ax8", "8x-1", "16385x64", "9" * 30 + "x8"):
        assert exit_of(tool.parse_args, ["--output", "out", "--size", text]) == 2
    with pytest.raises(argparse.ArgumentTypeError, match="512x512"):
        tool._size("512")


def test_a_model_without_checkpoint(tool: ModuleType, repository: Path, tmp_path: Path) -> None:
    """MaskCLIP has CLIP's weights alone."""
    config = repository / "projects/TrainingFree/configs/maskclip_minibench_composition.yaml"
    options = ["--config-file", config, "--format", "torchscript", "--vocab", WORDS]
    prints = export(tool, *options, "--output", tmp_path / "export")["fingerprints"]
    assert prints["checkpoint"] is prints["checkpoint_sha256"] is None and prints["clip_sha256"]
