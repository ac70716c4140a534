"""The command ``tagclip``: every tool under one name; only the one asked for is imported."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Container

import tagclip
from tagclip.utils.text import did_you_mean

__all__ = ["COMMANDS", "main"]

# What one wants to do -> command -> function without arguments below tagclip, and what it does.
COMMANDS = {
    "Train and evaluate": {
        "train": ("tools.train_net:invoke_main", "train or evaluate from a config"),
        "fit-gate": ("tools.fit_gate:invoke_main", "fit the gate on held-out seen classes"),
        "cost": ("tools.analyze_model:invoke_main", "say what a config costs, from shapes alone"),
        "benchmark": ("tools.benchmark:invoke_main", "measure time and memory"),
    },
    "Look at results": {
        "score": ("tools.score_predictions:invoke_main", "score anybody's predictions"),
        "compare": ("tools.compare_runs:invoke_main", "compare evaluated runs side by side"),
        "analyze": ("tools.analyze_predictions:invoke_main", "say what the trusty map adds"),
        "visualize-results": ("tools.visualize_results:invoke_main", "show where a run fails"),
    },
    "Segment images": {
        "demo": ("tools.demo:invoke_main", "draw images or videos segmented into any classes"),
        "webdemo": ("tools.webdemo.serve:invoke_main", "serve a web page that does so"),
    },
    "Prepare data": {
        "prepare ade20k": ("tools.prepare.prepare_ade20k:main", "make ADE20K's labels"),
        "prepare coco-stuff": ("tools.prepare.prepare_coco_stuff:main", "make COCO-Stuff's labels"),
        "prepare pascal-context": (
            "tools.prepare.prepare_pascal_context:main",
            "make PASCAL Context's labels",
        ),
        "prepare voc": ("tools.prepare.prepare_voc:main", "make PASCAL VOC's labels"),
        "labels convert": (
            "tools.convert_labels:invoke_main",
            "make label files of masks or annotations",
        ),
        "validate": ("tools.validate_dataset:invoke_main", "check every file of a dataset"),
        "visualize-data": ("tools.visualize_data:invoke_main", "show what training sees"),
    },
    "Convert and export": {
        "labels export": (
            "tools.export_predictions:invoke_main",
            "write predictions for annotation tools",
        ),
        "publish": ("tools.publish_model:invoke_main", "write a folder that others can load"),
        "convert": ("tools.convert_checkpoint:invoke_main", "convert checkpoints and weights"),
        "export": ("tools.export_model:invoke_main", "write a model as ONNX and TorchScript"),
        "run-onnx": ("tools.run_onnx:invoke_main", "run an exported model without torch"),
    },
    "MiniBench, the generated benchmark": {
        "minibench": (
            "tools.minibench.run_minibench:invoke_main",
            "generate, train, evaluate and draw",
        ),
        "minibench data": ("tools.minibench.generate_data:invoke_main", "generate its images"),
        "minibench report": ("tools.minibench.make_report:invoke_main", "draw what a run learned"),
        "minibench table": ("tools.minibench.run_table:invoke_main", "train and measure all runs"),
        "minibench clip": ("tools.minibench.train_clip:invoke_main", "train its small CLIP"),
    },
    "Set up": {
        "install-detectron2": ("tools.install_detectron2:invoke_main", "install detectron2"),
    },
}


def main() -> None:
    """Run the command that the command line names.

    Raises:
        SystemExit: there is no such command, or as the command ends.
    """
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        print(_format_help())
        return
    if words[0] == "--version":
        print(f"tagclip {tagclip.__version__}")
        return
    targets = {name: target for group in COMMANDS.values() for name, (target, _) in group.items()}
    family = [name for name in targets if name.startswith(f"{words[0]} ")]
    if family and words[0] not in targets and words[1:2] in ([], ["-h"], ["--help"]):
        print(_format_help(family))
        return
    # A name has one word or two.
    names = [" ".join(words[:2]), words[0]]
    if family and words[1:] and not words[1].startswith("-"):
        names.pop()
    for name in names:
        if name in targets:
            # The usage that argparse prints begins with it.
            sys.argv = [f"tagclip {name}", *words[len(name.split()) :]]
            _load(targets[name])()
            return
    sys.exit(_unknown(words, list(targets)))


def _load(target: str) -> Callable[[], None]:
    module, function = target.split(":")
    spec = importlib.util.find_spec(f"tagclip.{module}")
    # As `python FILE` does: a script may import the files beside it.
    sys.path.insert(0, os.path.dirname(spec.origin))
    return getattr(importlib.import_module(spec.name), function)


def _format_help(names: Container[str] = ()) -> str:
    """Text that lists the commands of some names, or all."""
    width = max(len(name) for group in COMMANDS.values() for name in group)
    lines = ["usage: tagclip COMMAND ...", "", "tagclip COMMAND --help tells more."]
    for title, group in COMMANDS.items():
        shown = [
            f"  {n:{width}}  {line}" for n, (_, line) in group.items() if not names or n in names
        ]
        lines += ["", f"{title}:", *shown] if shown else []
    return "\n".join(lines)


def _unknown(words: list[str], names: list[str]) -> str:
    family = [name for name in names if name.split()[0] == words[0]]
    found = " ".join(words[: 2 if family else 1])
    hint = "" if family else did_you_mean(found, names)
    expected = ", ".join(family) or "one of those that tagclip --help lists"
    return f"tagclip: found the command {found!r}{hint or f', expected {expected}'}"
