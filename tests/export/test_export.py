"""Exported models against the model itself: fixed and open sizes, every kind of head and gate."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from helpers.clip_files import fails, random_clip, tiny_config, write_json
from helpers.tiny_checkpoint import build, checkpointer
from helpers.tiny_export import (
    ODD,
    SQUARE,
    THIN,
    TOLERANCE,
    WIDE,
    WORDS,
    assert_equal,
    eager,
    load,
    noise,
    save_run,
)
from helpers.tiny_export import checkpoint as checkpoint
from helpers.tiny_export import clip_weights as clip_weights
from helpers.tiny_run import changed, maskclip_parts
from safetensors.torch import save_file

from tagclip import Vocabulary
from tagclip.errors import ConfigError
from tagclip.export import onnx as exporting
from tagclip.export.onnx import (
    WindowModel,
    class_inputs,
    largest_difference,
    to_onnx,
    to_torchscript,
)
from tagclip.export.recipe import export_recipe
from tagclip.projects import import_projects


@pytest.mark.parametrize(
    "opts",
    [
        [],
        ["MODEL.TAGCLIP.TRUSTY.ENABLED", False],
        ["MODEL.TAGCLIP.TEST.GATE", "unseen", "MODEL.TAGCLIP.TEST.BIAS_AFTER_GATE", True],
        ["MODEL.TAGCLIP.TEST.GATE", "none", "MODEL.TAGCLIP.TEST.SEEN_BIAS", 0.3],
        ["MODEL.TAGCLIP.TEST.BACKGROUND_THRESHOLD", 0.25],
        ["MODEL.CLIP.POS_EMBED_RESIZE", "bicubic", "TEST.ALLOW_PARTIAL_WEIGHTS", True],
    ],
    ids=lambda opts: " ".join(map(str, opts[:2])),
)
def test_torchscript_equals_the_model(checkpoint: Path, opts: list[object]) -> None:
    predictor = load(checkpoint, *opts)
    for size in (None, WIDE, ODD):
        content = to_torchscript(WindowModel(predictor.model, predictor.vocabulary, size))
        run = exporting.RUNNERS["torchscript"](content)
        for count, shape in [(1, WIDE), (3, ODD), (2, SQUARE), (1, THIN)]:
            if size in (None, shape):
                images = noise(count, shape)
                assert_equal(run(images), eager(predictor, images))


@pytest.mark.parametrize(
    "opts",
    [
        ["MODEL.TAGCLIP.RELATION", "none", "MODEL.TAGCLIP.LAYERS", "na"],
        ["MODEL.CLIP.PROMPT.NUM_TOKENS", 0, "MODEL.CLIP.DOUBLE_CLS_EMBED", False],
        ["MODEL.TAGCLIP.TRUSTY.TARGET", "novel", "DATASETS.ZERO_SHOT.ALLOW_NOVEL_MASKS", True],
    ],
    ids=lambda opts: opts[0],
)
def test_torchscript_of_other_architectures(
    tiny_cfg: CfgNode, clip_weights: str, tmp_path: Path, opts: list[object]
) -> None:
    cfg = changed(tiny_cfg, "MODEL.CLIP.PRETRAINED", clip_weights, *opts)
    predictor = load(save_run(cfg))
    content = to_torchscript(WindowModel(predictor.model, predictor.vocabulary))
    images = noise(3, ODD)
    assert_equal(exporting.RUNNERS["torchscript"](content)(images), eager(predictor, images))


POOLS = {
    "CLIPA": {"pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True},
    "CoCa": {"attentional_pool": True, "attn_pooler_heads": 4, "attn_pooler_queries": 5},
    "custom block": {"qk_norm": True, "scale_heads": True, "scale_attn_inner": True,
                     "scale_attn": True, "scale_fc": True, "ls_init_value": 0.1},
}  # fmt: skip


@pytest.mark.parametrize("options", POOLS.values(), ids=POOLS)
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("torchscript", "float32"),
        ("torchscript", "bfloat16"),
        pytest.param("onnx", "float32", marks=pytest.mark.slow),
    ],
)
def test_other_towers_of_open_clip(
    tiny_cfg: CfgNode, tmp_path: Path, options: dict, kind: str, dtype: str
) -> None:
    config = tiny_config(**{f"vision_{key}": value for key, value in options.items()})
    save_file(random_clip(config).state_dict(), tmp_path / "clip.safetensors")
    places = ["MODEL.CLIP.NAME", str(write_json(tmp_path / "model.json", config)),
              "MODEL.CLIP.PRETRAINED", str(tmp_path / "clip.safetensors")]  # fmt: skip
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    predictor = load(save_run(changed(tiny_cfg, *places)), "TEST.DTYPE", dtype)
    model = WindowModel(predictor.model, predictor.vocabulary)
    content = to_onnx(model) if kind == "onnx" else to_torchscript(model)
    for shape in (SQUARE, ODD):
        images = noise(2, shape)
        assert_equal(exporting.RUNNERS[kind](content)(images), eager(predictor, images))


@pytest.mark.parametrize("method", ["sclip", "naclip"])
def test_a_last_block_of_any_size(method: str, tiny_cfg: CfgNode, clip_weights: str) -> None:
    """A window of patches, as NACLIP's, is that of each image."""
    pytest.importorskip("onnxruntime")
    cfg = changed(
        tiny_cfg, "MODEL.CLIP.PRETRAINED", clip_weights, *maskclip_parts(),
        "MODEL.CLIP.LAST_BLOCK", method,
    )  # fmt: skip
    import_projects(cfg.PROJECTS)
    cfg, model = build(cfg)
    checkpointer(cfg, model, Path(cfg.OUTPUT_DIR)).save("model_final")
    predictor = load(Path(cfg.OUTPUT_DIR) / "model_final.pth")
    run = exporting.RUNNERS["onnx"](to_onnx(WindowModel(predictor.model, predictor.vocabulary)))
    images = noise(1, WIDE)
    # Classes of random weights score alike.
    np.testing.assert_allclose(run(images)[0], eager(predictor, images)[0], atol=TOLERANCE)


def test_torchscript_holds_no_paths(checkpoint: Path, repository: Path) -> None:
    predictor = load(checkpoint)
    content = to_torchscript(WindowModel(predictor.model, predictor.vocabulary, SQUARE))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        records = [archive.read(name) for name in archive.namelist()]
    assert not any(str(repository).encode() in record for record in records)


def test_fixed_size_refuses_others(checkpoint: Path) -> None:
    predictor = load(checkpoint)
    content = to_torchscript(WindowModel(predictor.model, predictor.vocabulary, SQUARE))
    with pytest.raises(RuntimeError):
        exporting.RUNNERS["torchscript"](content)(noise(1, WIDE))


def test_export_leaves_the_model_as_it_was(checkpoint: Path) -> None:
    predictor = load(checkpoint)
    images = noise(1, WIDE)
    before = eager(predictor, images)
    to_torchscript(WindowModel(predictor.model, predictor.vocabulary))
    for found, expected in zip(eager(predictor, images), before, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_onnx_of_a_fixed_size(checkpoint: Path, repository: Path) -> None:
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    predictor = load(checkpoint)
    content = to_onnx(WindowModel(predictor.model, predictor.vocabulary, ODD))
    run = exporting.RUNNERS["onnx"](content)
    for count in (1, 3):
        images = noise(count, ODD)
        expected = eager(predictor, images)
        assert_equal(run(images), expected)
        assert len(np.unique(expected[1])) == 3
    with pytest.raises(
        runtime.capi.onnxruntime_pybind11_state.InvalidArgument, match="invalid dimensions"
    ):
        run(noise(1, (ODD[0], ODD[1] + 1)))
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    values = (*model.graph.input, *model.graph.output)
    shapes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values]
    assert [value.name for value in values] == ["images", "scores", "labels", "trusty"]
    assert shapes == [["batch", 3, *ODD], ["batch", 3, *ODD], ["batch", *ODD], ["batch", *ODD]]
    assert str(repository).encode() not in content


@pytest.mark.parametrize(
    "opts",
    [
        ["MODEL.TAGCLIP.TRUSTY.ENABLED", False],
        ["MODEL.TAGCLIP.TEST.GATE", "unseen", "MODEL.TAGCLIP.TEST.BIAS_AFTER_GATE", True],
        ["MODEL.TAGCLIP.TEST.GATE_FORM", "lift"],
        ["MODEL.TAGCLIP.TEST.BACKGROUND_THRESHOLD", 0.25],
    ],
    ids=lambda opts: " ".join(map(str, opts[:2])),
)
def test_words_as_an_input_equal_baked_ones(checkpoint: Path, opts: list[object]) -> None:
    predictor = load(checkpoint, *opts)
    model, vocabulary = predictor.model, predictor.vocabulary
    images = torch.from_numpy(noise(2, ODD))
    words = [torch.from_numpy(array) for array in class_inputs(model, vocabulary)]
    with torch.no_grad():
        baked = WindowModel(model, vocabulary)(images)
        for found, expected in zip(WindowModel(model, None)(images, *words), baked, strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_onnx_with_words_as_an_input(checkpoint: Path) -> None:
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    predictor = load(checkpoint)
    content = to_onnx(WindowModel(predictor.model, None))
    run = exporting.RUNNERS["onnx"](content)
    for number in (1, 7, 300):
        names = [f"{word} {index}" for index in range(100) for word in WORDS.split(", ")][:number]
        predictor.set_vocabulary(names, seen=[index % 2 == 1 for index in range(number)])
        words = class_inputs(predictor.model, predictor.vocabulary)
        for count, shape in [(1, WIDE), (3, ODD), (1, THIN)]:
            images = noise(count, shape)
            outputs, expected = run(images, *words), eager(predictor, images)
            assert_equal(outputs, expected)
            np.testing.assert_allclose(outputs[0], expected[0], rtol=0, atol=1e-5)
            best = np.sort(expected[0], axis=1)[:, -2:]
            decided = (best[:, -1] - best[:, 0] > 1e-5) | (number == 1)
            assert (outputs[1] == expected[1])[decided].all() and decided.mean() > 0.9
    vectors, seen = words
    # What broadcasting would take, too.
    errors = runtime.capi.onnxruntime_pybind11_state
    for wrong in ((vectors, seen[:1]), (vectors[:1], seen), (vectors[:0], seen[:0])):
        with pytest.raises((errors.Fail, errors.RuntimeException)):
            run(images, *wrong)
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {
        "image": ["batch", 3, "height", "width"],
        "class_vectors": ["classes", 32],
        "seen": ["classes"],
        "scores": ["batch", "classes", "height", "width"],
        "labels": ["batch", "height", "width"],
        "trusty": ["batch", "height", "width"],
    }


def test_several_vectors_of_a_class_are_no_input(checkpoint: Path) -> None:
    predictor = load(checkpoint, "MODEL.CLIP.SYNONYMS", "max")
    fails(ConfigError, lambda: WindowModel(predictor.model, None), "SYNONYMS", "found max", "mean")


def test_largest_difference_looks_at_labels(checkpoint: Path) -> None:
    predictor = load(checkpoint)
    images = noise(2, WIDE)
    scores, labels, trusty = eager(predictor, images)
    arguments = predictor.model, predictor.vocabulary, images
    assert largest_difference(lambda _: [scores, labels, trusty], *arguments) < 1e-6
    wrong = labels.copy()
    wrong[1, 7, 5] = scores[1, :, 7, 5].argmin()
    assert largest_difference(lambda _: [scores, wrong, trusty], *arguments) == float("inf")


def test_other_backbones_are_refused(checkpoint: Path) -> None:
    predictor = load(checkpoint)
    predictor.model.backbone = torch.nn.Identity()
    action = lambda: WindowModel(predictor.model, Vocabulary.from_names(["a"], seen=[True]))  # noqa: E731
    fails(ConfigError, action, "MODEL.BACKBONE.NAME", "Identity", "such a MODEL.CLIP.NAME")


def test_a_resize_that_no_runtime_repeats_is_refused(checkpoint: Path) -> None:
    opts = ("INPUT.RESIZE", "cv2", "INPUT.INTERPOLATION", "bicubic")
    with pytest.raises(ConfigError, match=r"export with INPUT\.RESIZE pil"):
        export_recipe(load(checkpoint, *opts), None, {})
    mended = export_recipe(load(checkpoint, *opts, "INPUT.RESIZE", "pil"), None, {})
    assert mended["resize"]["interpolation"] == "bicubic"
