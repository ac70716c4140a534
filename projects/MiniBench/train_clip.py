#!/usr/bin/env python
"""Train MiniBench's small CLIP on generated pairs of image and caption.

tagclip minibench clip --output out/clip
"""

from __future__ import annotations

import argparse
import time
from contextlib import AbstractContextManager
from pathlib import Path

from tagclip.utils.cli import check_output, run_tool
from tagclip.utils.files import files_atomic, remove_leftovers, write_atomic
from tagclip.utils.run_lock import RunLock
from tagclip.utils.text import json_text
from tagclip.utils.tool_parser import NumberIn, ToolParser

# torch is imported inside the functions: --help answers at once.


def make_parser() -> ToolParser:
    """Make the parser of the command line."""
    parser = ToolParser(__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of the assets")
    parser.add_argument("--steps", type=NumberIn(int, 1, 1000000), default=1600, help="of training")
    parser.add_argument(
        "--images", type=NumberIn(int, 1, 1000000), default=12000, help="drawn beforehand"
    )
    parser.add_argument(
        "--batch", type=NumberIn(int, 2, 100000), default=64, help="images of a step"
    )
    parser.add_argument(
        "--lr", type=NumberIn(float, 1e-8, 10), default=2e-3, help="highest learning rate"
    )
    parser.add_argument(
        "--seed", type=NumberIn(int, 0, 2**32 - 1), default=0, help="of everything random"
    )
    return parser


def main(args: argparse.Namespace) -> None:
    """Train, measure, write."""
    import torch
    from open_clip import SimpleTokenizer
    from safetensors.torch import save

    from tagclip.projects.minibench import clip_training as training

    check_output("--output", args.output, is_folder=True)
    with RunLock(args.output, "--output"), _all_or_none(args.output) as files:
        torch.manual_seed(args.seed)
        torch.set_num_threads(1)
        merges = files / "mini_bpe.txt.gz"
        config = training.model_config(training.write_merges(merges))
        tokenizer = SimpleTokenizer(bpe_path=str(merges), context_length=training.CONTEXT)
        model = training.build_model(config)
        start = time.process_time()
        training.train(
            model,
            tokenizer,
            num_images=args.images,
            steps=args.steps,
            batch_size=args.batch,
            lr=args.lr,
            seed=args.seed,
        )
        seconds = time.process_time() - start
        half = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
        weights = save(half)
        model.load_state_dict({name: tensor.float() for name, tensor in half.items()})
        report = {
            "crop_accuracy_percent": round(training.crop_accuracy(model, tokenizer), 2),
            "cpu_seconds": round(seconds),
            "steps": args.steps,
            "seed": args.seed,
            "megabytes": round(len(weights) / 2**20, 3),
        }
        write_atomic(files / "mini_clip.safetensors", weights)
        write_atomic(files / "mini_clip.json", json_text(config, indent=1) + "\n")
        write_atomic(files / "mini_clip_report.json", json_text(report, indent=1) + "\n")
    print(json_text(report))


def _all_or_none(folder: Path) -> AbstractContextManager[Path]:
    """`files_atomic`: a report is of the weights beside it, whatever breaks off."""
    remove_leftovers(folder, "files")
    return files_atomic(folder)


def invoke_main() -> None:
    """Parse the command line and run."""
    run_tool(main, make_parser().parse_args())


if __name__ == "__main__":
    invoke_main()
