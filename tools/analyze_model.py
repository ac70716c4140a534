#!/usr/bin/env python
"""Say what a config costs: parameters, multiply-adds, text prompts, memory.

tagclip cost --config-file voc/tagclip_vitb16_voc_inductive.yaml
tagclip cost --config-file CONFIG MODEL.CLIP.NAME ViT-L-14-336-quickgelu

All of it follows from shapes: no CLIP weights, checkpoint or image is read, any
model runs on a laptop.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tagclip.projects import import_projects
from tagclip.utils.cli import run_tool
from tagclip.utils.text import json_text
from tagclip.utils.tool_parser import OF_OPTIMIZER, ToolParser

# detectron2 is imported inside the functions: --help answers at once.
if TYPE_CHECKING:
    from detectron2.config import CfgNode

    from tagclip.analysis.model_cost import ModelAnalysis

# Keys, and sections of keys, on which no shape depends. A model is refused for its BACKGROUND.
UNREAD = (
    *("OUTPUT_DIR", "MODEL.WEIGHTS", "SEED", "DATALOADER", *OF_OPTIMIZER, "SOLVER.MAX_ITER"),
    *("SOLVER.IMS_PER_BATCH", "SOLVER.ACCUMULATE", "SOLVER.REFERENCE_WORLD_SIZE"),
    *("SOLVER.CHECKPOINT_PERIOD", "TEST.AUG", "TEST.EVAL_PERIOD", "TEST.EXPECTED_RESULTS"),
    *("TEST.PRECISE_BN", "TEST.ALLOW_PARTIAL_WEIGHTS", "TEST.SAVE_PREDICTIONS"),
    *("TEST.SAVE_LOGITS", "TEST.DETECTIONS_PER_IMAGE", "TEST.KEYPOINT_OKS_SIGMAS"),
    *(f"MODEL.TAGCLIP.TEST.{key}" for key in ("GATE", "GATE_FORM", "GATE_SCALE", "SEEN_BIAS")),
    *(f"MODEL.TAGCLIP.TEST.{key}" for key in ("BIAS_AFTER_GATE", "UNKNOWN_CLASSES", "OUTPUT")),
    *("MODEL.TAGCLIP.TEST.WINDOW_BATCH", "MODEL.TAGCLIP.TEST.WORKSPACE_MIB"),
    "MODEL.TAGCLIP.TEST.BACKGROUND_THRESHOLD",
)
PARTS = {
    "backbone.patch_embed": "patch embedding",
    "backbone.prompts": "projection of the prompts",
    "backbone.blocks": "ViT blocks",
    "backbone.trunk": "network of timm",
    "backbone.head": "projection of the network",
    "backbone": "output projection",
    "sem_seg_head.relation": "relation descriptor",
    "sem_seg_head.decoder": "mask decoder",
}
# Long side over short side of the image that is given as an example.
EXAMPLE_ASPECT = 4 / 3
# Mean and square of the gradient, or its momentum, in float32.
OPTIMIZER_BYTES = {"ADAMW": 8, "SGD": 4}
GIGA, MIB = 10**9, 2**20


def make_parser() -> ToolParser:
    """Make the parser of the command line."""
    parser = ToolParser(__doc__)
    parser.add_config_file()
    parser.add_argument("--json", action="store_true", help="print json (in single units)")
    parser.add_config_keys(unread=UNREAD)
    return parser


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    return make_parser().parse_args(args)


def main(args: argparse.Namespace) -> None:
    """Analyze a config and print the result."""
    from tagclip import load_config

    cfg = load_config(args.config_file, args.opts)
    import_projects(cfg.PROJECTS)
    report = analyze(cfg)
    if args.json:
        print(json_text(report, indent=1))
    else:
        print(f"{args.config_file or 'default config'}\n\n{format_report(report)}")


def analyze(cfg: CfgNode) -> dict[str, Any]:
    """Count everything.

    Returns:
        A tree of plain values: parameters, multiply-accumulates and bytes in single units; keys
        as in `format_report`.

    Raises:
        TagCLIPError: a key, a dataset or a vocabulary is not in order.
    """
    from tagclip.analysis.model_cost import ModelAnalysis
    from tagclip.data import Protocol

    analysis = ModelAnalysis(cfg)
    parameters = analysis.parameters()
    trainable = sum(row.trainable for row in parameters)
    vocabularies = {"training": analysis.model.train_vocabulary}
    protocol = Protocol(cfg)
    vocabularies |= {name: protocol.asked(name) for name in cfg.DATASETS.TEST}
    return {
        "clip": cfg.MODEL.CLIP.NAME,
        "prompts_per_layer": cfg.MODEL.CLIP.PROMPT.NUM_TOKENS,
        "decoder_layers": cfg.MODEL.TAGCLIP.LAYERS,
        "trusty_token": cfg.MODEL.TAGCLIP.TRUSTY.ENABLED,
        "parameters": {
            "modules": [asdict(row) for row in parameters],
            "trainable": trainable,
            "frozen": sum(row.frozen for row in parameters),
            "text_tower": analysis.text_parameters(),
        },
        "forward": [
            _forward(analysis, cfg, name, len(words)) for name, words in vocabularies.items()
        ],
        "text": {
            "context_length": analysis.model.text_bank.source.context_length,
            "macs_per_uncut_prompt": analysis.macs_per_text(),
            "vocabularies": [
                {"name": name, "classes": len(words)} | asdict(analysis.text(words))
                for name, words in vocabularies.items()
            ],
        },
        "training_memory": _training_memory(analysis, cfg, trainable),
    }


def _forward(analysis: ModelAnalysis, cfg: CfgNode, name: str, num_classes: int) -> dict[str, Any]:
    """Multiply-accumulates of one training image, or of one window of a test image."""
    short = cfg.INPUT.MIN_SIZE_TEST
    image, windows = [short, round(short * EXAMPLE_ASPECT)], 1
    if name == "training":
        image = size = list(analysis.train_size)
    else:
        windows, size = analysis.windows(*image)
    macs = analysis.forward_macs(num_classes, size)
    return {
        "name": name,
        "classes": num_classes,
        "size": list(size),
        "macs": {part: count for part, count in macs.items() if count},
        "macs_total": sum(macs.values()),
        "example_image": image,
        "example_windows": windows,
    }


def _training_memory(
    analysis: ModelAnalysis, cfg: CfgNode, trainable: int
) -> dict[str, Any] | None:
    """Bytes of one training step; None for a model without trainable parameters."""
    if not trainable:
        return None
    amp = cfg.SOLVER.AMP
    return {
        "size": list(analysis.train_size),
        "precision": f"autocast to {amp.DTYPE}" if amp.ENABLED else "float32",
        "recomputed_blocks": cfg.MODEL.BACKBONE.CHECKPOINT,
        "activations": asdict(analysis.activations()),
        "loss_workspace": int(cfg.MODEL.TAGCLIP.LOSS.WORKSPACE_MIB * MIB),
        "gradients": 4 * trainable,
        "optimizer": OPTIMIZER_BYTES[cfg.SOLVER.OPTIMIZER] * trainable,
    }


def format_report(report: dict[str, Any]) -> str:
    """Tables of a report of `analyze`."""
    token = "with" if report["trusty_token"] else "without"
    sections = [
        f"CLIP {report['clip']}, {report['prompts_per_layer']} prompts per layer, decoder "
        f"{report['decoder_layers']}, {token} trusty token",
        _format_parameters(report["parameters"]),
        _format_forward(report["forward"]),
        _format_text(report["text"]),
        _format_memory(report["training_memory"]),
    ]
    return "\n\n".join(sections)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    from tabulate import tabulate

    align = ("left", *["right"] * (len(head) - 1))
    return tabulate(rows, head, colalign=align, disable_numparse=True)


def _format_parameters(parameters: dict[str, Any]) -> str:
    modules = [*parameters["modules"], {"module": "sum"} | parameters]
    rows = [(m["module"], f"{m['trainable']:,}", f"{m['frozen']:,}") for m in modules]
    tower = f"{parameters['text_tower']:,}"
    return (
        f"Parameters\n{_table(('module', 'trainable', 'frozen'), rows)}\n"
        f"The frozen text tower ({tower}) is no part of the model: it is built when class vectors "
        "are in no cache."
    )


def _format_forward(columns: list[dict[str, Any]]) -> str:
    """One column per class list."""
    parts = list(dict.fromkeys(part for column in columns for part in column["macs"]))
    parts.sort(key=[*PARTS, *parts].index)
    head = ["part", *(f"{c['name']}\n{c['classes']} classes" for c in columns)]
    rows = [
        [PARTS.get(part, part), *(f"{c['macs'].get(part, 0) / GIGA:.3f}" for c in columns)]
        for part in parts
    ]
    rows.append(["sum", *(f"{c['macs_total'] / GIGA:.3f}" for c in columns)])
    rows.append(["for", *(_pixels(c["size"]) for c in columns)])
    lines = [
        f"{c['name']}: an image of {_pixels(c['example_image'])} has {c['example_windows']} "
        f"window(s), {c['example_windows'] * c['macs_total'] / GIGA:.1f} GMAC."
        for c in columns
        if c["name"] != "training"
    ]
    title = (
        "Forward pass, GMAC (10^9 multiply-accumulates, two floating-point operations each)\n"
        "of matrix products and convolutions"
    )
    return "\n".join([title, _table(head, rows), *lines])


def _pixels(size: Sequence[int]) -> str:
    return f"{size[0]} x {size[1]} px"


def _format_text(text: dict[str, Any]) -> str:
    rows = [
        (
            row["name"],
            f"{row['classes']}",
            f"{row['prompts']:,}",
            f"{row['tokens']}",
            f"{row['macs'] / row['prompts'] / GIGA:.3f}",
            f"{row['macs'] / GIGA:,.1f}",
        )
        for row in text["vocabularies"]
    ]
    head = ("vocabulary", "classes", "prompts", "longest, tokens", "GMAC per prompt", "GMAC")
    return (
        "Text tower, once per vocabulary, not at all with a filled MODEL.CLIP.TEXT_CACHE\n"
        f"{_table(head, rows)}\n"
        "Prompts are cut to the longest of their batch; uncut, at "
        f"{text['context_length']} tokens, each would take "
        f"{text['macs_per_uncut_prompt'] / GIGA:.3f} GMAC."
    )


def _format_memory(memory: dict[str, Any] | None) -> str:
    if memory is None:
        return "Training memory: nothing is trained."
    kept = memory["activations"]
    per_image = kept["backbone"] + kept["head"] + kept["loss"]
    recomputed = ", blocks recomputed" if memory["recomputed_blocks"] else ""
    rows = [
        ("activations of the backbone", kept["backbone"], "per image"),
        ("activations of the head", kept["head"], "per image"),
        ("activations of the loss", kept["loss"], "per image"),
        ("sum of the activations", per_image, "per image"),
        ("activations that do not depend on the batch", kept["fixed"], "per step"),
        ("planes of the loss, at most", memory["loss_workspace"], "per step"),
        ("gradients", memory["gradients"], "always"),
        ("state of the optimizer", memory["optimizer"], "always"),
    ]
    table = _table(("memory", "MiB", ""), [(a, f"{b / MIB:,.1f}", c) for a, b, c in rows])
    return (
        f"Training memory, {_pixels(memory['size'])}, {memory['precision']}{recomputed}\n{table}\n"
        "Activations are measured: what autograd's saved-tensor hooks see in forward passes, with\n"
        "the attention kernels of a CPU. The rest follows from formulas; parameters come on top."
    )


def invoke_main() -> None:
    """Parse the command line and run."""
    run_tool(main, parse_args())


if __name__ == "__main__":
    invoke_main()
