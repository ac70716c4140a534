#!/usr/bin/env python
"""Write a trained model as a folder that others can load, and send it to the hub.

tagclip publish --weights output/voc/model_final.pth --output voc
tagclip publish --weights FILE --output FOLDER --with-clip
tagclip publish --weights FILE --output FOLDER --push-to-hub ORGANISATION/NAME

The folder holds what was trained, its config, class list and a model card,
which shows results that lie beside the checkpoint. How others load it:
docs/sharing.md
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tagclip.utils.cli import run_tool
from tagclip.utils.tool_parser import NOT_OF_INFERENCE, ToolParser

# Keys, and sections of keys, by which folder and card would tell of another training than that of
# the checkpoint.
OF_TRAINING = (
    *NOT_OF_INFERENCE,
    *("CONFIG_NAME", "OUTPUT_DIR", "SEED", "DATASETS.TRAIN", "DATASETS.VOCABULARIES"),
    *("DATASETS.ZERO_SHOT", "MODEL.WEIGHTS", "MODEL.META_ARCHITECTURE", "MODEL.BACKBONE"),
    *("MODEL.SEM_SEG_HEAD", "MODEL.CLIP.PROMPT", "MODEL.CLIP.LAST_BLOCK"),
    *(f"MODEL.TAGCLIP.{key}" for key in ("TRUSTY", "LAYERS", "NUM_HEADS", "RELATION")),
    "MODEL.TAGCLIP.FEATURE_SCALE",
)


def make_parser() -> ToolParser:
    """Make the parser of the command line."""
    parser = ToolParser(__doc__)
    add = parser.add_argument
    parser.add_weights("the model", required=True)
    add("--output", required=True, type=Path, metavar="FOLDER", help="is created as a whole")
    add("--overwrite", action="store_true", help="replace a model that was written there before")
    add("--with-clip", action="store_true", help="copy CLIP's weights into the folder, too")
    add(
        "--results", nargs="+", default=[], type=Path, metavar="FILE",
        help="metrics.json of its evaluations (default: those below the checkpoint's folder)",
    )  # fmt: skip
    add("--license", default="", metavar="ID", help="of what was trained, such as apache-2.0")
    add("--push-to-hub", default="", metavar="NAME", help="send it there: ORGANISATION/NAME")
    add("--private", action="store_true", help="a repository that is made is private")
    parser.add_config_keys(
        unread=OF_TRAINING, why="describes the training, as the model of --weights does itself"
    )
    return parser


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser()
    parsed = parser.parse_args(args)
    if parsed.private and not parsed.push_to_hub:
        parser.error("--private: does nothing without --push-to-hub, leave it out")
    files = [path.resolve() for path in parsed.results]
    twice = next((path for path in parsed.results if files.count(path.resolve()) > 1), None)
    if twice is not None:
        parser.error(f"--results: found {twice} twice, expected each file once; leave one out")
    return parsed


def main(args: argparse.Namespace) -> None:
    """Load the model, write its folder, send it; say what was done.

    Raises:
        TagCLIPError: see `TagCLIPPredictor.save_pretrained` and `push_to_hub`.
    """
    from tagclip import TagCLIPPredictor
    from tagclip.pretrained import check_target

    check_target(args.output, args.overwrite)
    print(f"Loading {args.weights}", flush=True)
    predictor = TagCLIPPredictor.from_pretrained(args.weights, args.opts)
    options = {"with_clip": args.with_clip, "results": args.results, "license": args.license}
    folder = predictor.save_pretrained(args.output, overwrite=args.overwrite, **options)
    sizes = {str(p.relative_to(folder)): p.stat().st_size for p in folder.rglob("*") if p.is_file()}
    for name, size in sorted(sizes.items()):
        print(f"  {name:28} {size / 1e6:9.3f} MB")
    print(f"Written: {folder}; read its README.md before you hand it on")
    if args.push_to_hub:
        print(f"Sending to {args.push_to_hub}", flush=True)
        private = True if args.private else None
        print(predictor.push_to_hub(args.push_to_hub, private=private, **options))


def invoke_main() -> None:
    """Parse the command line and run."""
    run_tool(main, parse_args())


if __name__ == "__main__":
    invoke_main()
