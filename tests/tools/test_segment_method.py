"""`tagclip segment --method`: CLIP alone, of any tower whose last block has self-attention."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from helpers.clip_files import write_json
from helpers.small_towers import TINY_TEXT, few_blocks, small_config
from helpers.tiny_run import load_tool, own_loggers
from PIL import Image
from safetensors.torch import load_file, save_file

from tagclip import Vocabulary, load_config
from tagclip.config.checks import choices
from tagclip.errors import CheckpointError, ConfigError
from tagclip.projects import import_projects
from tagclip.projects.minibench.generate import scene


@pytest.fixture
def demo(repository: Path) -> Iterator[ModuleType]:
    with own_loggers():
        yield load_tool(repository / "tools" / "demo.py")


def test_a_method_needs_no_training(
    demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a model of MiniBench lies about, which it does not take."""
    assets = Path(demo.__file__).parents[1] / "projects" / "MiniBench" / "assets"
    image = scene("test", 4)
    Image.fromarray(image.image).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    clip = ["MODEL.CLIP.NAME", str(assets / "mini_clip.json"), "MODEL.CLIP.PRETRAINED",
            str(assets / "mini_clip.safetensors")]  # fmt: skip
    words = ["green board", "blue fence", "sand"]
    found = {}
    for method in demo.METHODS:
        arguments = ["a.png", "--method", method, "--vocab", ",".join(words), "--save-labels"]
        assert demo.main(demo.parse_args([*arguments, "--output", method, *clip])) == 0
        found[method] = np.array(Image.open(tmp_path / method / "a_labels.png"))
    names = load_config("minibench/tagclip_minibench_composition.yaml")
    import_projects(names.PROJECTS)
    vocabulary = Vocabulary.from_metadata("minibench_test", "composition").names
    truth = np.full(image.label.shape, -1)
    for index, word in enumerate(words):
        truth[image.label == vocabulary.index(word)] = index
    asked = truth >= 0
    assert asked.mean() > 0.3
    for method, labels in found.items():
        assert (labels == truth)[asked].mean() > 0.6, method
    assert len({labels.tobytes() for labels in found.values()}) == len(found)


def test_pictures_of_other_clip_weights_are_not_finished(demo: ModuleType, tmp_path: Path) -> None:
    """There is no checkpoint that would notice that the file is another one."""
    assets = Path(demo.__file__).parents[1] / "projects" / "MiniBench" / "assets"
    clip = tmp_path / "clip.safetensors"
    clip.write_bytes((assets / "mini_clip.safetensors").read_bytes())
    Image.fromarray(scene("test", 4).image).save(tmp_path / "a.png")
    words = ["--method", "maskclip", "--vocab", "green board, blue fence, sand", "--save-labels"]
    keys = ["MODEL.CLIP.NAME", assets / "mini_clip.json", "MODEL.CLIP.PRETRAINED", clip]

    def labels(output: str) -> bytes:
        arguments = [tmp_path / "a.png", *words, "--output", tmp_path / output, *keys]
        assert demo.main(demo.parse_args(list(map(str, arguments)))) == 0
        return (tmp_path / output / "a_labels.png").read_bytes()

    first = labels("out")
    tensors = load_file(clip)
    save_file(tensors | {"visual.proj": tensors["visual.proj"].flip(1)}, clip)
    assert labels("out") == labels("anew") != first


def test_methods_are_those_of_the_key(demo: ModuleType) -> None:
    assert ["clip", *demo.METHODS] == list(choices("MODEL.CLIP.LAST_BLOCK"))


@pytest.mark.parametrize(
    "given",
    [
        ["--weights", "model.pth"],
        ["--config-file", "zegclip/zegclip_vitb16_voc_inductive.yaml"],
        ["MODEL.WEIGHTS", "model.pth"],
    ],
)
def test_a_method_excludes_a_trained_model(demo: ModuleType, given: list[str]) -> None:
    args = demo.parse_args(["a.png", "--method", "naclip", *given])
    with pytest.raises(ConfigError, match=f"--method: found {given[1]}, too, expected") as error:
        demo.build_predictor(args)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("block", ["sclip", "naclip"])
def test_a_method_is_said_once(demo: ModuleType, block: str) -> None:
    args = demo.parse_args(["a.png", "--method", "naclip", "MODEL.CLIP.LAST_BLOCK", block])
    with pytest.raises(ConfigError, match=r"found naclip and MODEL\.CLIP\.LAST_BLOCK") as error:
        demo.build_predictor(args)
    assert "\n" not in str(error.value)


def test_a_method_needs_self_attention(demo: ModuleType, tmp_path: Path) -> None:
    config = small_config("convnext_tiny", text_cfg=TINY_TEXT)
    config.pop("custom_text", None)
    name = str(write_json(tmp_path / "model.json", config))
    clip = ["MODEL.CLIP.NAME", name, "MODEL.CLIP.PRETRAINED", "", "MODEL.DEVICE", "cpu"]
    args = demo.parse_args(["a.png", "--method", "naclip", *clip])
    message = "LAST_BLOCK: found 'naclip' .* no self-attention"
    with few_blocks(), pytest.raises(ConfigError, match=message) as error:
        demo.build_predictor(args)
    assert "\n" not in str(error.value)


def test_what_clip_lacks_is_no_reason_to_train(demo: ModuleType, tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    clip = ["MODEL.CLIP.NAME", "ViT-B-16-SigLIP2", "MODEL.CLIP.PRETRAINED", ""]
    options = ["--method", "naclip", "--vocab", "cat", "--output", str(tmp_path / "out")]
    with pytest.raises(CheckpointError, match=r"set MODEL\.CLIP\.TOKENIZER to their folder$"):
        demo.main(demo.parse_args([str(tmp_path / "a.png"), *options, *clip]))
