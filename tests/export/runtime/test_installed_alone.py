"""The wheel in an environment with numpy, Pillow and onnxruntime, and nothing else."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import venv
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_export import WORDS, noise
from helpers.tiny_export import checkpoint as checkpoint
from helpers.tiny_export import clip_weights as clip_weights
from helpers.tiny_run import load_tool
from helpers.wheels import build_wheel, copy_sources
from PIL import Image

from tagclip import TagCLIPPredictor

pytest.importorskip("onnxruntime")
# The three and what they need themselves, with the folders of their shared libraries.
PACKAGES = ("numpy", "PIL", "onnxruntime", "flatbuffers", "packaging", "google")
LIBRARIES = ("numpy.libs", "pillow.libs")


@pytest.mark.slow
def test_words_with_the_wheel_alone(repository: Path, checkpoint: Path, tmp_path: Path) -> None:
    folder, image, out = tmp_path / "export", tmp_path / "a.png", tmp_path / "out.png"
    tool = load_tool(repository / "tools" / "export_model.py")
    words = ["--weights", checkpoint, "--words", "input", "--vocab", WORDS, "--output", folder]
    tool.main(tool.parse_args(list(map(str, words))))
    Image.fromarray(noise(1, (80, 96))[0].transpose(1, 2, 0)).save(image)

    source, wheels = tmp_path / "source", tmp_path / "wheels"
    source.mkdir()
    wheel = build_wheel(copy_sources(source), wheels)

    venv.create(tmp_path / "alone", symlinks=True)
    (site,) = (tmp_path / "alone" / "lib").glob("python*/site-packages")
    shutil.unpack_archive(wheel, site, "zip")
    for name in PACKAGES:
        if spec := importlib.util.find_spec(name):
            (site / name).symlink_to(next(iter(spec.submodule_search_locations)))
    for name in LIBRARIES:
        beside = Path(np.__file__).parents[1] / name
        if beside.is_dir():
            (site / name).symlink_to(beside)

    python = tmp_path / "alone" / "bin" / "python"
    code = "import sys; sys.argv[0] = 'tagclip'; from tagclip.cli import main; main()"
    command = [python, "-I", "-c", code, "run-onnx", folder, image, out, "--words", "dog, sofa"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert not ended.returncode and not ended.stderr, ended.stderr
    predictor = TagCLIPPredictor.from_checkpoint(checkpoint)
    predictor.set_vocabulary(["dog", "sofa"])
    expected = predictor(image)["sem_seg_labels"].numpy()
    assert (np.array(Image.open(out)) != expected).mean() < 1e-3
    assert subprocess.run([python, "-I", "-c", "import torch"], capture_output=True).returncode
