"""Command lines of the tools: options that several have, and config keys anywhere among them."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "CONFIG_ROOTS",
    "MOST_PROCESSES",
    "NOT_OF_INFERENCE",
    "OF_OPTIMIZER",
    "NumberIn",
    "ToolParser",
    "add_vocabulary_options",
]

# First parts of the names of all config keys, detectron2's as well.
CONFIG_ROOTS = (
    *("CONFIG_NAME", "CUDNN_BENCHMARK", "DATALOADER", "DATASETS", "FLOAT32_PRECISION", "GLOBAL"),
    *("INPUT", "MODEL", "OUTPUT_DIR", "PROJECTS", "SEED", "SOLVER", "TEST", "VERSION"),
    "VIS_PERIOD",
)
# More of them than any machine has use for are a slip of the hand that takes all of its memory.
MOST_PROCESSES = 1024
# Keys, and sections of keys, that who applies a model does not read: of training, of evaluation.
NOT_OF_INFERENCE = (
    *("SOLVER", "DATALOADER", "MODEL.TAGCLIP.LOSS", "MODEL.TAGCLIP.SELF_TRAINING"),
    *("INPUT.CROP", "INPUT.MIN_SIZE_TRAIN", "INPUT.MIN_SIZE_TRAIN_SAMPLING"),
    *("INPUT.MAX_SIZE_TRAIN", "INPUT.SCALE_RANGE", "INPUT.RANDOM_FLIP", "INPUT.COLOR_AUG_SSD"),
    *("INPUT.REDUCED_JPEG", "DATASETS.ON_BAD_SAMPLE", "DATASETS.ZERO_SHOT.SKIP_UNSEEN_IMAGES"),
    *("DATASETS.ZERO_SHOT.ALLOW_NOVEL_MASKS", "DATASETS.ZERO_SHOT.ALLOW_TRAINED_UNSEEN"),
    *("MODEL.BACKBONE.CHECKPOINT", "MODEL.CLIP.PROMPT.DROPOUT", "MODEL.TAGCLIP.DROPOUT"),
    # FIT_IMAGES, SAMPLE_IMAGES and KEPT_PATCHES say how large a map's tensors in a checkpoint are.
    *("MODEL.TAGCLIP.TRUSTY.LOSS", "MODEL.TAGCLIP.TRUSTY.CONV.DROPOUT"),
    *("MODEL.TAGCLIP.TRUSTY.CONV.BASE_LR", "MODEL.TAGCLIP.TRUSTY.CONV.WEIGHT_DECAY"),
    *("MODEL.TAGCLIP.TRUSTY.CONV.STEPS", "MODEL.TAGCLIP.TRUSTY.CONV.REPLAY_BATCHES"),
    *("MODEL.TAGCLIP.TEST.OUTPUT", "TEST.EVAL_PERIOD", "TEST.EXPECTED_RESULTS"),
    *("TEST.PRECISE_BN", "TEST.SAVE_LOGITS", "TEST.SAVE_PREDICTIONS", "VIS_PERIOD"),
)
# Keys that say how the weights change from step to step, but for SOLVER.OPTIMIZER and AMP.
OF_OPTIMIZER = tuple(
    f"SOLVER.{key}"
    for key in (
        *("ADAM_BETAS", "MOMENTUM", "NESTEROV", "BASE_LR", "PROMPT_LR_FACTOR", "BIAS_LR_FACTOR"),
        *("MIN_LR", "LR_SCHEDULER_NAME", "WARMUP_METHOD", "POLY_LR_POWER", "WARMUP_ITERS"),
        *("WARMUP_FACTOR", "WEIGHT_DECAY", "WEIGHT_DECAY_NORM", "WEIGHT_DECAY_BIAS"),
        *("CLIP_GRADIENTS", "GAMMA", "STEPS"),
    )
)
_METAVARS = {int: "N", float: "X", Path: "PATH"}
_KEY = re.compile(rf"({'|'.join(CONFIG_ROOTS)})(\.[A-Z0-9_]+)*")


@dataclass(frozen=True)
class NumberIn:
    """``type`` of an option whose value is a number from ``low`` to ``high``.

    Attributes:
        kind: int or float.
        low, high: inclusive bounds.
    """

    kind: type
    low: float
    high: float

    def __call__(self, text: str) -> float:
        """Read it; argparse makes a usage error of what is no such number."""
        try:
            number = self.kind(text)
        except ValueError:
            number = math.nan
        if self.low <= number <= self.high:
            return number
        noun = "a whole number" if self.kind is int else "a number"
        raise argparse.ArgumentTypeError(
            f"found {text!r:.40}, expected {noun} from {self.low} to {self.high}"
        )


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """The description stands as it is; kinds of values and defaults are said in one way."""

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        kind = getattr(action.type, "kind", action.type)
        return _METAVARS.get(kind) or super()._get_default_metavar_for_optional(action)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        is_told = "default" in (action.help or "default") or isinstance(action.default, bool)
        has_one = isinstance(action.default, str | int | float | Path)
        if is_told or not has_one or action.default in ("", argparse.SUPPRESS):
            return action.help
        return f"{action.help} (default: %(default)s)"


class ToolParser(argparse.ArgumentParser):
    """Parser of a tool's command line.

    Positional arguments may stand before, between and behind options, as may config keys with
    their values where `add_config_keys` was called; all that follows ``--opts`` are keys. An empty
    word is no value of an option or argument.
    """

    def __init__(self, description: str, usage: str | None = None) -> None:
        """Make a parser without arguments.

        Args:
            description: docstring of the tool, shown as it stands.
            usage: instead of argparse's.
        """
        super().__init__(
            usage=usage,
            description=description,
            formatter_class=_Formatter,
        )
        self._takes_keys = False
        self._unread: tuple[str, ...] = ()
        self._why = ""
        self._same: dict[str, str] = {}

    def add_config_file(self, required: bool = False, use: str = "") -> None:
        """Add ``--config-file``.

        Args:
            required: whether it has to be given; else it is "".
            use: what the config is for.
        """
        use = f"{use}: " if use else ""
        self.add_argument(
            "--config-file",
            default="",
            required=required,
            metavar="FILE",
            help=f"{use}yaml file, or name that tagclip configs lists",
        )

    def add_weights(self, use: str, absent: str = "", **options: Any) -> None:
        """Add ``--weights``, which takes what `tagclip.checkpoint.find_weights` finds.

        Args:
            use: what the model is for.
            absent: what is taken without the option.
            options: of ``add_argument``.
        """
        absent = f" (default: {absent})" if absent else ""
        text = f"{use}: file, folder, or ORGANISATION/NAME of the hub{absent}"
        self.add_argument("--weights", metavar="FILE", help=text, **options)

    def add_config_keys(
        self,
        unread: Sequence[str] = (),
        why: str = "does nothing here",
        same: Mapping[str, str] | None = None,
    ) -> None:
        """Add ``opts``, the config keys to override and their values.

        Args:
            unread: keys and sections of keys that are refused.
            why: what is wrong with them here.
            same: attribute of an option -> the key that says the same, which is refused beside it;
                None: that of ``--weights``.
        """
        self._takes_keys, self._unread, self._why = True, tuple(unread), why
        self._same = dict({"weights": "MODEL.WEIGHTS"} if same is None else same)
        self.add_argument(
            "opts", nargs="*", default=[], metavar="KEY VALUE", help="config keys to override"
        )

    def parse_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Parse a command line; ends the process with 2 and the usage on a mistake."""
        words, pairs = self._words(args)
        if not {"-h", "--help"}.isdisjoint(words):
            # In Python 3.11 parse_intermixed_args hides the defaults of positional arguments.
            self.print_help()
            self.exit()
        parsed = self.parse_intermixed_args(words, namespace)
        if self._takes_keys:
            parsed.opts = [*pairs, *parsed.opts]
            for key in parsed.opts[::2]:
                if any(key == each or key.startswith(f"{each}.") for each in self._unread):
                    self.error(f"{key}: {self._why}, leave it out")
            self._refuse_both(args, parsed.opts)
        return parsed

    def _refuse_both(self, args: Sequence[str] | None, opts: Sequence[str]) -> None:
        """Refuse an option beside the key that says the same: one of them would do nothing."""
        for name, key in self._same.items():
            if key in opts[::2] and (given := self.given(args, name)):
                self.error(f"{given[0]} and {key} say the same: leave one of them out")

    def given(self, args: Sequence[str] | None, *names: str) -> list[str]:
        """Options that a command line names, also with the values that they have without it.

        Args:
            args: see `parse_args`.
            names: attributes of options, of which those are looked for.
        """
        # A value that is there already stays where the option is not given.
        words, _ = self._words(args)
        found = self.parse_intermixed_args(words, argparse.Namespace(**dict.fromkeys(names)))
        return [
            action.option_strings[0]
            for action in self._actions
            if action.dest in names and getattr(found, action.dest) is not None
        ]

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """Refuse empty words: they would count as not given. Keys and their values may be empty."""
        if "" in arg_strings and not (self._takes_keys and action.dest == "opts"):
            if action.option_strings:
                name, remedy = action.option_strings[0], "leave the option out, or fill it"
            else:
                name, remedy = action.metavar or action.dest, "leave it out, or fill it"
            self.error(f"{name}: found an empty value, expected one; {remedy}")
        return super()._get_values(action, arg_strings)

    def _words(self, args: Sequence[str] | None) -> tuple[list[str], list[str]]:
        """Words for argparse, and config keys with their values."""
        words = list(sys.argv[1:] if args is None else args)
        if not self._takes_keys:
            return words, []
        rest: list[str] = []
        pairs: list[str] = []
        while words:
            if words[0] == "--opts":
                return rest, [*pairs, *words[1:]]
            is_key = _KEY.fullmatch(words[0]) and not (rest and self._takes_value(rest[-1]))
            target, count = (pairs, 2) if is_key else (rest, 1)
            target += words[:count]
            words = words[count:]
        return rest, pairs

    def _takes_value(self, word: str) -> bool:
        """Whether a word is an option, perhaps shortened, whose value is the next word."""
        options: dict[str, argparse.Action] = self._option_string_actions
        meant = [action for name, action in options.items() if name.startswith(word)]
        return word.startswith("-") and any(action.nargs not in (0, "?") for action in meant)


def add_vocabulary_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `tagclip.structures.vocabulary_words.read_asked` reads."""
    words = parser.add_mutually_exclusive_group()
    words.add_argument("--vocab", metavar="NAMES", help="""'cat, "blue, striped fence"'""")
    words.add_argument("--vocab-file", metavar="FILE", help="one name per line, or vocabulary json")
    words.add_argument("--vocab-from-dataset", metavar="NAME", help="classes of this dataset")
    parser.add_argument("--dedup", action="store_true", help="keep the first of equal names")
