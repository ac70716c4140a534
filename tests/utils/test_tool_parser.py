"""Command lines of the tools: config keys among the arguments, and what help says of itself."""

from __future__ import annotations

from functools import reduce
from operator import getitem
from pathlib import Path

import pytest
from helpers.tiny_run import exit_of, load_tool

from tagclip import load_config
from tagclip.utils.tool_parser import CONFIG_ROOTS, NOT_OF_INFERENCE, ToolParser


@pytest.fixture
def parser() -> ToolParser:
    parser = ToolParser("Do it.")
    parser.add_config_file()
    parser.add_argument("images", nargs="*")
    parser.add_argument("--formats", nargs="+", default=[])
    parser.add_argument("--vocab", "-v", default="")
    parser.add_argument("--threshold", nargs="?", type=float, const=0.1)
    parser.add_argument("--fast", action="store_true")
    parser.add_config_keys()
    return parser


def test_keys_that_do_nothing_are_refused(capsys: pytest.CaptureFixture) -> None:
    parser = ToolParser("Do it.")
    parser.add_config_keys(unread=["SOLVER", "TEST.SAVE"])
    good = ["TEST.SAVE_ALL", "1", "SOLVERS", "2", "SEED", "SOLVER"]
    assert parser.parse_args(["--opts", *good]).opts == good
    for key in ("SOLVER", "SOLVER.AMP.DTYPE", "TEST.SAVE"):
        assert exit_of(parser.parse_args, ["SEED", "1", key, "1"]) == 2
        assert f"error: {key}: does nothing here, leave it out" in capsys.readouterr().err


@pytest.mark.parametrize("same", [None, {"weights": "MODEL.WEIGHTS", "dataset": "DATASETS.TEST"}])
def test_an_option_and_the_key_that_says_the_same_do_not_go_together(
    same: dict[str, str] | None, capsys: pytest.CaptureFixture
) -> None:
    """Whichever were taken, the other would do nothing; a default gives way to the key."""
    parser = ToolParser("Do it.")
    parser.add_weights("what", default="own.pth")
    parser.add_argument("--dataset", default="")
    parser.add_config_keys(same=same)
    assert parser.parse_args(["MODEL.WEIGHTS", "w.pth", "--dataset", "d"]).dataset == "d"
    assert parser.parse_args(["--weights", "w.pth", "SEED", "1"]).weights == "w.pth"
    both = ["MODEL.WEIGHTS", "w.pth", "--weights", "own.pth"]
    assert exit_of(parser.parse_args, both) == 2
    line = "error: --weights and MODEL.WEIGHTS say the same: leave one of them out"
    assert line in capsys.readouterr().err
    code = exit_of(parser.parse_args, ["--dataset", "d", "--opts", "DATASETS.TEST", "()"])
    assert code == (2 if same else None)


PAIR = ["MODEL.WEIGHTS", "w.pth"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("MODEL.WEIGHTS w.pth", {}),
        ("--opts MODEL.WEIGHTS w.pth", {}),
        ("--fast MODEL.WEIGHTS w.pth --vocab a", {"fast": True, "vocab": "a"}),
        ("--formats x y MODEL.WEIGHTS w.pth", {"formats": ["x", "y"]}),
        ("b.png MODEL.WEIGHTS w.pth --formats x y", {"formats": ["x", "y"], "images": ["b.png"]}),
        ("a.png --vocab cat b.png MODEL.WEIGHTS w.pth", {"images": ["a.png", "b.png"]}),
        ("--threshold MODEL.WEIGHTS w.pth", {"threshold": 0.1}),
        ("--threshold=2 MODEL.WEIGHTS w.pth", {"threshold": 2}),
        # What an option takes is no key, whatever it looks like.
        ("--vocab SEED MODEL.WEIGHTS w.pth", {"vocab": "SEED"}),
        ("-v SEED MODEL.WEIGHTS w.pth", {"vocab": "SEED"}),
        ("--voc SEED MODEL.WEIGHTS w.pth", {"vocab": "SEED"}),
        ("--vocab=SEED MODEL.WEIGHTS w.pth", {"vocab": "SEED"}),
        # Nor is a file.
        ("IMG_1.JPG MODEL.WEIGHTS w.pth", {"images": ["IMG_1.JPG"]}),
    ],
)
def test_keys_stand_anywhere(parser: ToolParser, line: str, expected: dict) -> None:
    parsed = parser.parse_args(line.split())
    assert {key: getattr(parsed, key) for key in expected} == expected
    assert parsed.opts == PAIR


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", []),
        ("a.png MODEL.WEIGHTS w.pth", []),
        ("-v cat", ["--vocab"]),
        ("--fast --voc=a", ["--vocab", "--fast"]),
        ("--threshold --formats x MODEL.WEIGHTS w.pth", ["--formats", "--threshold"]),
    ],
)
def test_options_that_are_given(parser: ToolParser, line: str, expected: list[str]) -> None:
    """Also where nothing follows from them."""
    names = ("formats", "vocab", "threshold", "fast")
    assert parser.given(line.split(), *names) == expected
    assert parser.given(line.split(), "config_file") == []


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["--vocab", ""], "--vocab"),
        (["--vocab="], "--vocab"),
        (["-v", "", "a.png"], "--vocab"),
        (["--formats", "a", "", "--fast"], "--formats"),
        (["--threshold", "", *PAIR], "--threshold"),
        (["--config-file", "", *PAIR], "--config-file"),
        ([""], "images"),
        (["a.png", "", *PAIR], "images"),
        ([*PAIR, ""], "images"),
    ],
)
def test_an_empty_word_is_no_value(
    parser: ToolParser, words: list[str], name: str, capsys: pytest.CaptureFixture
) -> None:
    """It would count as not given: the tool would do more than it was asked for."""
    assert exit_of(parser.parse_args, words) == 2
    assert f"error: {name}: found an empty value, expected one; leave " in capsys.readouterr().err


def test_values_of_keys_may_be_empty(parser: ToolParser) -> None:
    pair = ["MODEL.WEIGHTS", ""]
    for words in (pair, ["a.png", *pair, "--fast"], ["--fast", "--opts", *pair]):
        assert parser.parse_args(words).opts == pair


def test_values_of_keys_may_look_like_anything(parser: ToolParser) -> None:
    words = ["SEED", "-1", "DATASETS.TEST", "('a',)", "MODEL.WEIGHTS", "SEED", "--fast"]
    parsed = parser.parse_args(words)
    assert parsed.opts == words[:-1] and parsed.fast
    # The config's reader says that a value is missing.
    assert parser.parse_args(["--fast", "SEED"]).opts == ["SEED"]


def test_what_is_no_key_is_left_to_the_reader_of_the_config() -> None:
    parser = ToolParser("Do it.")
    parser.add_config_keys()
    assert parser.parse_args(["solver.max_iter", "3", "SEED", "1"]).opts == [
        *("SEED", "1"),
        *("solver.max_iter", "3"),
    ]


def test_a_tool_without_keys_takes_all_as_arguments(capsys: pytest.CaptureFixture) -> None:
    parser = ToolParser("Do it.")
    parser.add_argument("run")
    assert parser.parse_args(["SEED"]).run == "SEED"
    assert exit_of(parser.parse_args, ["SEED", "3"]) == 2
    assert capsys.readouterr().err.endswith("error: unrecognized arguments: 3\n")


def test_the_first_parts_of_all_keys_are_known() -> None:
    """One is of later versions of detectron2 alone."""
    known = set(load_config("Base-ZeroShot.yaml"))
    assert known | {"FLOAT32_PRECISION"} == set(CONFIG_ROOTS)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("demo.py", ["a.png"]),
        ("fit_gate.py", ["--config-file", "c", "--hold-out", "a", "--dataset", "d"]),
        ("visualize_data.py", ["--config-file", "c"]),
        ("analyze_model.py", []),
    ],
)
def test_keys_that_a_tool_refuses_are_keys(
    name: str, words: list[str], repository: Path, capsys: pytest.CaptureFixture
) -> None:
    """A slip of the pen in a list would let a key through that does nothing."""
    cfg, tool = load_config("Base-ZeroShot.yaml"), load_tool(repository / "tools" / name)
    for key in NOT_OF_INFERENCE if name == "demo.py" else tool.UNREAD:
        reduce(getitem, key.split("."), cfg)
        assert exit_of(tool.parse_args, [*words, key, "1"]) == 2
        assert f"error: {key}: does nothing here, leave it out" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["demo.py", "bulk.py"])
@pytest.mark.parametrize(
    ("words", "is_read"),
    [
        ([], False),
        (["--weights", "w.pth"], False),
        (["--config-file", "c", "--weights", "w.pth"], False),
        (["--config-file", "c", "MODEL.WEIGHTS", "w.pth"], False),
        (["--method", "sclip"], False),
        (["--config-file", "c"], True),
    ],
)
def test_an_output_dir_that_would_not_be_read_is_refused(
    name: str, words: list[str], is_read: bool, repository: Path, capsys: pytest.CaptureFixture
) -> None:
    """Who gives it expects the results there."""
    tool = load_tool(repository / "tools" / name)
    words = ["a.png", "--vocab", "a", "--output", "o", *words, "OUTPUT_DIR", "mine"]
    assert exit_of(tool.parse_args, words) == (None if is_read else 2)
    assert is_read or "error: OUTPUT_DIR: names the run whose" in capsys.readouterr().err


# What `fit-gate`, `visualize data` and `cost` read of these sections.
READ = {
    "fit_gate.py": {"TEST": ("AUG", "PRECISE_BN", "ALLOW_PARTIAL_WEIGHTS", "DTYPE")},
    "visualize_data.py": {
        "SOLVER": ("IMS_PER_BATCH", "MAX_ITER", "ACCUMULATE", "REFERENCE_WORLD_SIZE"),
        "TEST": (),
        "MODEL.TAGCLIP.TEST": (),
        "MODEL.TAGCLIP.LOSS": (),
        "MODEL.CLIP": ("NAME", "JSON", "MERGES", "TOKENIZER", "PRETRAINED", "SHA256", "CACHE_DIR"),
    },
    "analyze_model.py": {
        "SOLVER": ("OPTIMIZER", "AMP"),
        "TEST": ("DTYPE",),
        "DATALOADER": (),
        "MODEL.TAGCLIP.TEST": (
            *("MODE", "WINDOW", "STRIDE", "BACKGROUND", "BACKGROUND_MISS_RATE"),
        ),
    },
}


@pytest.mark.parametrize("name", READ)
def test_a_tool_takes_the_keys_that_it_reads_and_no_other(name: str, repository: Path) -> None:
    cfg, tool = load_config("Base-ZeroShot.yaml"), load_tool(repository / "tools" / name)
    of_detectron2 = {"DETECTIONS_PER_IMAGE", "KEYPOINT_OKS_SIGMAS"}
    for section, read in READ[name].items():
        keys = set(reduce(getitem, section.split("."), cfg)) - of_detectron2
        taken = keys - {key for key in keys if {section, f"{section}.{key}"} & set(tool.UNREAD)}
        assert taken == set(read)


@pytest.mark.parametrize(
    "key",
    [
        *("MODEL.TAGCLIP.TEST.OUTPUT", "INPUT.REDUCED_JPEG", "DATASETS.ON_BAD_SAMPLE"),
        *("DATASETS.ZERO_SHOT.ALLOW_NOVEL_MASKS", "DATASETS.ZERO_SHOT.ALLOW_TRAINED_UNSEEN"),
        *("DATASETS.ZERO_SHOT.SKIP_UNSEEN_IMAGES", "MODEL.BACKBONE.CHECKPOINT", "VIS_PERIOD"),
        *("MODEL.TAGCLIP.DROPOUT", "MODEL.CLIP.PROMPT.DROPOUT", "MODEL.TAGCLIP.TRUSTY.LOSS"),
        *(f"MODEL.TAGCLIP.TRUSTY.CONV.{key}" for key in ("BASE_LR", "DROPOUT", "WEIGHT_DECAY")),
        *(f"MODEL.TAGCLIP.TRUSTY.CONV.{key}" for key in ("STEPS", "REPLAY_BATCHES")),
    ],
)
def test_inference_reads_nothing_of_training(key: str) -> None:
    assert key in NOT_OF_INFERENCE


def test_help_names_kinds_and_defaults(capsys: pytest.CaptureFixture) -> None:
    parser = ToolParser("Do it.\n\n  As it stands.")
    add = parser.add_argument
    add("run", nargs="?", type=Path, default=Path("out"), help="a run")
    add("--num", type=int, default=6, help="images")
    add("--rate", type=float, default=0.5, help="of learning")
    add("--output", type=Path, default=Path("a/b"), help="folder")
    add("--dataset", metavar="NAME", default="", help="one alone")
    add("--all", action="store_true", help="all of them")
    add("--workers", type=int, default=3, help="processes (default: all cores)")
    assert exit_of(parser.parse_args, ["a", "--all", "--help"]) == 0
    shown = capsys.readouterr().out
    text = " ".join(shown.split())
    assert "\n\n  As it stands.\n\n" in shown
    for part in (
        "run a run (default: out)",
        "--num N images (default: 6)",
        "--rate X of learning (default: 0.5)",
        "--output PATH folder (default: a/b)",
        "--dataset NAME one alone --all all of them --workers N processes (default: all cores)",
    ):
        assert part in text
    assert text.endswith("(default: all cores)")
