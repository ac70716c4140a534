"""The commands of ``tagclip``, and what names of earlier versions are called today."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from types import ModuleType

__all__ = ["COMMANDS", "MODULES", "RENAMED", "family", "find_command", "load_command"]

# What one wants to do -> command -> module below tagclip with `make_parser` and `invoke_main`, and
# what the command does.
COMMANDS = {
    "Try it": {
        "minibench": ("tools.minibench.run_minibench", "generate, train, evaluate and draw"),
        "minibench data": ("tools.minibench.generate_data", "generate its images alone"),
        "minibench report": ("tools.minibench.make_report", "draw what a run learned"),
        "minibench table": ("tools.minibench.run_table", "train and measure all its runs"),
        "minibench novelty": (
            "tools.minibench.compare_novelty",
            "compare what tells unseen pixels",
        ),
        "minibench clip": ("tools.minibench.train_clip", "train its small CLIP"),
        "segment": ("tools.demo", "segment images or videos into any classes"),
        "bulk": ("tools.bulk", "segment very many images, with any number of processes"),
        "webdemo": ("tools.webdemo.serve", "serve a web page that does so"),
    },
    "Prepare data": {
        "prepare ade20k": ("tools.prepare.prepare_ade20k", "make ADE20K's labels"),
        "prepare coco-stuff": ("tools.prepare.prepare_coco_stuff", "make COCO-Stuff's labels"),
        "prepare pascal-context": (
            "tools.prepare.prepare_pascal_context",
            "make PASCAL Context's labels",
        ),
        "prepare voc": ("tools.prepare.prepare_voc", "make PASCAL VOC's labels"),
        "labels convert": ("tools.convert_labels", "make label files of masks or annotations"),
        "validate": ("tools.validate_dataset", "check every file of a dataset"),
        "visualize data": ("tools.visualize_data", "show what training sees"),
    },
    "Train and evaluate": {
        "configs": ("tools.list_configs", "list all configs by name"),
        "towers": ("tools.list_towers", "list the image-text models that can be used"),
        "train": ("tools.train_net", "train a model from a config"),
        "evaluate": ("tools.evaluate_net", "evaluate a model, as train --eval-only"),
        "fit-gate": ("tools.fit_gate", "fit the gate on held-out seen classes"),
        "cost": ("tools.analyze_model", "say what a config costs, from shapes alone"),
        "benchmark": ("tools.benchmark", "measure time and memory"),
    },
    "Look at results": {
        "score": ("tools.score_predictions", "score anybody's predictions"),
        "bulk-read": ("tools.read_bulk", "list and select images of tagclip bulk"),
        "compare": ("tools.compare_runs", "compare evaluated runs side by side"),
        "analyze": ("tools.analyze_predictions", "say what the trusty map adds"),
        "visualize results": ("tools.visualize_results", "show where a run fails"),
        "labels export": ("tools.export_predictions", "write predictions for annotation tools"),
    },
    "Hand on": {
        "publish": ("tools.publish_model", "write a model as a folder, or push it to a hub"),
        "convert": ("tools.convert_checkpoint", "convert checkpoints and weights"),
        "export": ("tools.export_model", "write a model as ONNX and TorchScript"),
        "run-onnx": ("tools.run_onnx", "run an exported model without torch"),
    },
    "Set up": {
        "setup-detectron2": ("tools.install_detectron2", "install detectron2"),
    },
}
RENAMED = {
    "demo": "segment",
    "visualize-data": "visualize data",
    "visualize-results": "visualize results",
    "install-detectron2": "setup-detectron2",
}
MODULES = {name: module for group in COMMANDS.values() for name, (module, _) in group.items()}


def find_command(words: Sequence[str]) -> str | None:
    """Name of the command that the first words of a command line name, which has one or two."""
    if (two := " ".join(words[:2])) in MODULES:
        return two
    # `minibench x` names no command, although minibench is one.
    is_member = words[1:] and not words[1].startswith("-") and family(words[0])
    return words[0] if words and words[0] in MODULES and not is_member else None


def family(word: str) -> list[str]:
    """Names of the commands of two words that begin with one."""
    return [name for name in MODULES if name.startswith(f"{word} ")]


def load_command(name: str) -> ModuleType:
    """Import the module of a command."""
    spec = importlib.util.find_spec(f"tagclip.{MODULES[name]}")
    # As `python FILE` does: a script may import the files beside it.
    sys.path.insert(0, os.path.dirname(spec.origin))
    return importlib.import_module(spec.name)
