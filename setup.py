#!/usr/bin/env python
"""Package TagCLIP. Tested versions are pinned in requirements.txt; here are only ranges."""

from __future__ import annotations

import re
from glob import glob
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
# Packages that lie elsewhere, as in tagclip/projects/__init__.py: projects, and scripts.
FOLDERS = {
    "tagclip.projects.benchmark": "projects/Benchmark/benchmark",
    "tagclip.projects.minibench": "projects/MiniBench/minibench",
    "tagclip.projects.training_free": "projects/TrainingFree/training_free",
    "tagclip.projects.webdemo": "projects/WebDemo/webdemo",
    "tagclip.tools": "tools",
    "tagclip.tools.minibench": "projects/MiniBench",
    "tagclip.tools.prepare": "datasets",
    "tagclip.tools.webdemo": "projects/WebDemo",
}
# Configs and assets, below tagclip/model_zoo as below the repository (tagclip.projects.ROOT).
_DATA = ("configs", "projects/MiniBench/assets", *glob("projects/*/configs", root_dir=ROOT))
DATA = {f"tagclip.model_zoo.{folder.replace('/', '.')}": folder for folder in _DATA}


def version() -> str:
    """``__version__`` of the package, without importing it."""
    text = (ROOT / "tagclip" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE).group(1)


# Neither detectron2 nor cv2: the first is not on PyPI under its name, the second comes with one of
# two distributions. `tagclip setup-detectron2` (tools/install_detectron2.py) brings both, and
# their first use checks for them (tagclip/utils/installed.py).
setup(
    name="tagclip",
    version=version(),
    description="Zero-shot semantic segmentation with TagCLIP, an extension of detectron2",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The TagCLIP for Detectron2 authors",
    license="Apache-2.0",
    # The suite runs on 3.11; of the others README.md says what was run.
    python_requires=">=3.11,<3.14",
    license_files=["LICENSE", "THIRD_PARTY.md"],
    packages=[*find_packages(include=["tagclip", "tagclip.*"]), *FOLDERS, *DATA],
    package_dir=FOLDERS | DATA,
    package_data={
        "tagclip": [
            "config/*.yaml",
            "data/datasets/*.json",
            "data/datasets/*/*.json",
            "modeling/clip/*.json",
            "structures/*.json",
            "*/templates/*.j2",
        ],
        "tagclip.projects.minibench": ["*.json", "templates/*.html.j2"],
        "tagclip.projects.webdemo": ["*.js", "*.css", "templates/*.html.j2"],
        "tagclip.tools": ["*.json"],
        "tagclip.tools.prepare": ["README.md"],
        **dict.fromkeys(DATA, ["**/*.yaml", "*.json", "*.safetensors", "*.gz"]),
    },
    entry_points={"console_scripts": ["tagclip = tagclip.cli:main"]},
    install_requires=[
        "torch>=2.5",
        "torchvision>=0.20",
        "numpy>=1.26",
        "Pillow>=10",
        "simplejpeg>=1.9,<2",
        "open_clip_torch>=3.3,<4",
        # Image towers; open_clip brings it, too.
        "timm>=1.0.31,<2",
        # Models that are handed on; open_clip brings it, too.
        "huggingface_hub>=1,<3",
        "safetensors>=0.4.3",
        "PyYAML>=6",
        "matplotlib>=3.8",
        "jinja2>=3.1",
        "tabulate>=0.9",
        "tqdm>=4.66",
        "argcomplete>=3.5,<4",
        # The rest of what detectron2 needs, which tools/install_detectron2.py does not bring.
        "fvcore>=0.1.5,<0.1.6",
        "iopath>=0.1.9",
        "yacs>=0.1.8",
        "omegaconf>=2.1",
        "hydra-core>=1.1",
        "cloudpickle>=2",
        "termcolor>=1.1",
        "pycocotools>=2.0.7",
        "tensorboard>=2.15",
    ],
    extras_require={
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "ruff>=0.17",
            "tifffile>=2024.1",
            "nbclient>=0.10",
            "nbformat>=5.10",
            "ipykernel>=6.29",
        ],
        # Tokenizers and text towers of transformers (tagclip/modeling/clip/tokenizer.py); the last
        # two read tokenizers without tokenizer.json, such as google/mt5-base.
        "hf": ["transformers>=5,<6", "sentencepiece>=0.2", "protobuf>=5"],
        "demo": ["gradio>=6.31,<7", "h11>=0.16,<1", "starlette>=1.0.1,<2", "uvicorn>=0.54,<1"],
        # Videos that browsers play (tagclip/demo/media.py).
        "video": ["av>=18,<19"],
        "export": ["onnx>=1.23", "onnxscript>=0.7", "onnxruntime>=1.32"],
        # The other runtime of exported models (tagclip/export/runtime/session.py).
        "openvino": ["openvino>=2026.4"],
        # Files of rows, and clusters (tagclip/bulk).
        "bulk": ["pyarrow>=20", "ray[data]>=2.50,<3"],
        # Reads the .mat files of SBD and PASCAL Context.
        "prepare": ["scipy>=1.11"],
    },
)
