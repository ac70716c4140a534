"""The table of config keys: each has a reader, a text and only values that make sense."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import Any

import detectron2
import pytest
import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from helpers.tiny_run import changed, write_run_config, write_tiny_dataset
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tagclip import ZeroShotTrainer, load_config
from tagclip.config import (
    add_tagclip_config,
    available_device,
    check_config,
    check_device,
    check_training,
    check_value,
    unread_keys,
)
from tagclip.config.defaults import config_keys
from tagclip.config.keys import DETECTRON2, Key
from tagclip.config.reference import config_reference
from tagclip.errors import ConfigError, TagCLIPError

SECTIONS = config_keys()
KEYS = [key for keys in SECTIONS.values() for key in keys.values()]
NAMES = [key.name for key in KEYS]
ODD_NUMBERS = [0, -1, 1, 3, 2**31, 10**400, -(10**20), 0.5, -0.5, 1e308, math.nan, math.inf]
LONG = "9" * 300
ODD_WORDS = [
    "",
    " ",
    "x",
    "Both",
    "{}",
    "\x1b[2J",
    LONG,
    f"/{LONG}/x.pt",
    "~nobody/x.pt",
    "a\0b.pt",
    "[1, 'a']",
    "None",
    "{'a': 1}",
]
ODD_ITEMS = [*ODD_NUMBERS, *ODD_WORDS, True, False, None]
ODD_VALUES = [*ODD_ITEMS, [], [0], [-1, 2], [1.0, 2.0, 3.0], [math.nan] * 3, ["a"], [None], [[1]]]


def leaves(node: CfgNode, prefix: str = "") -> dict[str, object]:
    found = {}
    for key, value in node.items():
        path = f"{prefix}{key}"
        found |= leaves(value, f"{path}.") if isinstance(value, CfgNode) else {path: value}
    return found


def set_value(cfg: CfgNode, name: str, value: Any) -> CfgNode:
    """Copy of a config with a value of any type, as a program can set it."""
    cfg = cfg.clone()
    *sections, last = name.split(".")
    node = cfg
    for section in sections:
        node = node[section]
    dict.__setitem__(node, last, value)
    return cfg


def test_the_table_has_every_key_that_is_added_once() -> None:
    before = leaves(get_cfg())
    cfg = get_cfg()
    add_tagclip_config(cfg)
    added = leaves(cfg).keys() - before.keys()
    assert len(set(NAMES)) == len(NAMES) and added <= set(NAMES) <= set(leaves(cfg))
    for key in KEYS:
        # Only what detectron2 has may keep its default; only that needs a kind.
        assert key.default is not DETECTRON2 or (key.name in before and (key.kind or key.choices))
        assert not key.when or key.when in NAMES
        assert key.text and key.text == key.text.strip() and key.text.endswith("."), key.name


def test_two_configs_share_no_default() -> None:
    first, second = load_config(), load_config()
    first.INPUT.SCALE_RANGE.append(3.0)
    first.PROJECTS.append("MaskCLIP")
    assert (second.INPUT.SCALE_RANGE, second.PROJECTS) == ([0.5, 2.0], [])


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_every_key_has_a_reader(key: Key, repository: Path) -> None:
    """Some code other than the config's reads `<anything>.KEY`, near the name of its section."""
    if len(key.choices) == 1:
        return  # What it says is said by the check alone.
    section, _, name = key.name.rpartition(".")
    # A section may be bound to a variable first, so the parent's name must stand in the file.
    parent = section.rpartition(".")[2]
    # detectron2 asks for some by a literal.
    used = rf"\.{name}\b" if parent else rf"(\.{name}\b|\"{name}\")"
    files = [*repository.glob("tagclip/**/*.py"), *repository.glob("tools/*.py")]
    files = [path for path in files if path.parent.name != "config"]
    files.append(repository / "tagclip" / "config" / "loading.py")
    if key.name in leaves(get_cfg()):
        library = Path(detectron2.__file__).parent
        parts = [library / part for part in ("engine", "modeling", "solver")]
        files += [path for part in parts for path in part.rglob("*.py")]
    for path in files:
        text = path.read_text()
        if re.search(used, text) and (not parent or re.search(rf"\.{parent}\b", text)):
            return
    pytest.fail(f"no code reads {key.name}")


def test_docs_are_in_step_with_the_table(repository: Path) -> None:
    text = (repository / "docs" / "config.md").read_text()
    assert text == config_reference(), "run python -m tagclip.config.reference > docs/config.md"
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        f"## {title}" for title in SECTIONS
    ]
    assert set(re.findall(r"^\| `([A-Z0-9_.]+)`", text, re.MULTILINE)) == set(NAMES)
    # A bar within a cell would begin another one.
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines()} == {0, 5}
    assert "docs/config.md" in (repository / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("MODEL.TAGCLIP.TEST.GATE", "bth",
         "found 'bth', expected 'none' or 'seen' or 'unseen' or 'both'; did you mean both?"),
        ("SOLVER.BASE_LR", -1.0, "found -1.0, expected a number from 0 to 1000"),
        ("SOLVER.MIN_LR", math.nan, "found nan, expected a number from 0 to 1000"),
        ("SOLVER.MIN_LR", "1", "found '1', expected a number from 0 to 1000"),
        ("SOLVER.MIN_LR", 1e308, "found 1e+308, expected a number from 0 to 1000"),
        ("MODEL.TAGCLIP.TEST.SEEN_BIAS", math.nan,
         "found nan, expected a number from -100 to 100"),
        ("MODEL.TAGCLIP.TEST.SEEN_BIAS", -math.inf,
         "found -inf, expected a number from -100 to 100"),
        ("TEST.PRECISE_BN.ENABLED", True, "found True, expected False"),
        ("SEED", 2**32, "found 4294967296, expected a whole number from -1 to 4294967295"),
        ("SOLVER.MAX_ITER", 2**31,
         "found 2147483648, expected a whole number from 1 to 2147483647"),
        ("SOLVER.MAX_ITER", 1.0, "found 1.0, expected a whole number from 1 to 2147483647"),
        ("SOLVER.MAX_ITER", True, "found True, expected a whole number from 1 to 2147483647"),
        ("INPUT.COLOR_AUG_SSD", 1, "found 1, expected True or False"),
        ("INPUT.CROP.SINGLE_CATEGORY_MAX_AREA", 0.0,
         "found 0.0, expected a number above 0 and at most 1"),
        ("INPUT.SCALE_RANGE", [2.0, 1.0],
         "found [2.0, 1.0], expected a list of 2 numbers from 0.01 to 10, ascending"),
        ("SOLVER.ADAM_BETAS", [0.9, 1.0],
         "found [0.9, 1.0], expected a list of 2 numbers of at least 0 and below 1"),
        ("INPUT.MIN_SIZE_TRAIN", (),
         "found (), expected a list of one or more whole numbers from 14 to 10000"),
        ("MODEL.TAGCLIP.LAYERS", "abn", "found 'abn', expected a text of the letters a and n"),
        ("MODEL.CLIP.TEMPLATES", 3, "found 3, expected a text or a list of one or more texts"),
        ("SOLVER.WEIGHT_DECAY_BIAS", -1.0,
         "found -1.0, expected a number from 0 to 1000 or null"),
        ("DATASETS.TRAIN", ("a", 1), "found ('a', 1), expected a list of texts"),
        ("INPUT.MAX_SIZE_TEST", 1, "found 1, expected 0, or a whole number from 14 to 1000000"),
        ("INPUT.MIN_SIZE_TEST", -1, "found -1, expected 0, or a whole number from 14 to 10000"),
        ("SOLVER.MOMENTUM", 1.0, "found 1.0, expected a number of at least 0 and below 1"),
        ("TEST.PRECISE_BN.ENABLED", 0, "found 0, expected False"),
    ],
)  # fmt: skip
def test_a_message_says_what_was_found_and_is_expected(name: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_config(set_value(load_config(), name, value))
    assert str(caught.value) == f"{name}: {message}"
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_value(name, value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SOLVER.BASE_LR", 0),
        ("MODEL.PIXEL_MEAN", (1, 2.0, 3)),
        ("MODEL.CLIP.TEMPLATES", ["a {}"]),
        ("SOLVER.WEIGHT_DECAY_BIAS", None),
        ("SOLVER.WEIGHT_DECAY_BIAS", 0.1),
        ("INPUT.SCALE_RANGE", [1.0, 1.0]),
        ("SEED", 2**32 - 1),
        ("INPUT.MAX_PIXELS", 10**12),
        ("INPUT.MAX_SIZE_TEST", 0),
        ("INPUT.MAX_SIZE_TEST", 14),
    ],
)
def test_what_makes_sense_is_accepted(name: str, value: Any) -> None:
    check_config(set_value(load_config(), name, value))


# What the key itself says, beside the type of its default.
ROWS = {
    name: row
    for rows in yaml.safe_load(
        (resources.files("tagclip.config") / "keys.yaml").read_text()
    ).values()
    for name, row in rows.items()
}


def numbers(name: str) -> bool:
    """Whether a key is a number or a list of numbers."""
    row = ROWS[name]
    default = row.get("default", "")
    kind = row.get("kind") or type((default or [""])[0] if isinstance(default, list) else default)
    return "choices" not in row and bool(re.search("int|float", str(kind)))


def switched_on(name: str) -> CfgNode:
    """A config in which the value of a key is looked at."""
    cfg = load_config("", ["INPUT.CROP.TYPE", "absolute"])
    return set_value(cfg, ROWS[name]["when"], True) if "when" in ROWS[name] else cfg


@pytest.mark.parametrize("name", NAMES)
def test_a_number_has_a_range_and_nothing_beyond_is_accepted(name: str, repository: Path) -> None:
    row, cfg = ROWS[name], switched_on(name)
    if not numbers(name):
        assert not {"low", "high", "above", "below", "also"} & set(row)
        return
    assert len({"low", "above"} & set(row)) == len({"high", "below"} & set(row)) == 1
    is_whole = "int" in str(row.get("kind", "")) or isinstance(row.get("default"), int)
    step = 1 if is_whole else 1e-3 * abs(row.get("low") or row.get("high") or 1)
    outside = [math.nan, math.inf, -math.inf, 10**400, -(10**400), None, True, "1", "", {}, [[]]]
    inside = [row["also"]] if "also" in row else []
    for bound, sign in (("low", -1), ("high", 1)):
        if bound in row:
            inside.append(row[bound])
            outside.append(row[bound] + sign * step)
    outside += [row[bound] for bound in ("above", "below") if bound in row]
    if "null" in row.get("kind", ""):
        outside.remove(None)
    # A word that the table has of its own is no number beside its range.
    outside = [value for value in outside if type(value) in (str, dict) or value not in inside]
    is_list = "list" in str(row.get("kind", "")) or isinstance(row.get("default"), list)
    length = row.get("length", 1) if is_list else 0
    length = 1 if length == "some" else int(str(length).split(" or ")[-1])

    def of(value: Any) -> Any:
        return [value] * length if is_list else value

    for value in inside:
        check_value(name, of(value))
    bounds = [
        str(row[bound]) for bound in ("low", "high", "above", "below", "also") if bound in row
    ]
    for value in map(of, outside):
        with pytest.raises(ConfigError) as caught:
            check_config(set_value(cfg, name, value))
        found, _, expected = str(caught.value).partition(", expected ")
        assert found == f"{name}: found {value!r:.200}"
        assert all(bound in expected for bound in bounds)


@pytest.mark.parametrize("name", [name for name in NAMES if "above" in ROWS[name]])
def test_a_number_that_vanishes_in_float32_is_not_above_0(name: str) -> None:
    cfg = switched_on(name)
    check_config(set_value(cfg, name, 1e-40))
    with pytest.raises(ConfigError, match=f"^{name}: found 1e-320, expected .*above 0.*; in float"):
        check_config(set_value(cfg, name, 1e-320))


# Wrong for every key but those that are named.
WRONG = [
    (math.nan, ()),
    (math.inf, ()),
    (-1, ("SEED", "TAGCLIP.TEST.SEEN_BIAS", "TAGCLIP.TEST.GATE_SCALE")),
    (None, ("WEIGHT_DECAY_BIAS",)),
    (10**10, ("MAX_PIXELS",)),
    ({}, ()),
    ([None], ("FOLDER_DATASETS", "DATASETS.VOCABULARIES", "EXPECTED_RESULTS")),
]


@pytest.mark.parametrize("name", NAMES)
def test_no_key_takes_what_is_of_no_type_or_size(name: str) -> None:
    cfg = switched_on(name)
    for value, takers in WRONG:
        if name.endswith(takers) and takers:
            continue
        with pytest.raises(ConfigError) as caught:
            check_config(set_value(cfg, name, value))
        assert str(caught.value).startswith(f"{name}: found {value!r}, expected "), name


def test_keys_that_detectron2_alone_reads_are_named(repository: Path, tmp_path: Path) -> None:
    assert unread_keys(load_config()) == []
    # As a run writes it, where tuples become lists.
    (path := tmp_path / "config.yaml").write_text(load_config().dump())
    assert unread_keys(load_config(str(path))) == []
    for path in (repository / "configs").rglob("*.yaml"):
        assert not unread_keys(load_config(str(path))), path
    sizes = ("INPUT.MIN_SIZE_TEST", 64, "MODEL.TAGCLIP.TEST.WINDOW", 64)
    keys = ("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 0, "VIS_PERIOD", 5, "MODEL.RPN.NMS_THRESH", 0.5)
    assert unread_keys(load_config("", (*sizes, *keys))) == [
        "MODEL.RPN.NMS_THRESH", "MODEL.SEM_SEG_HEAD.IGNORE_VALUE", "VIS_PERIOD",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("SOLVER.MIN_LR", 1.0), r"SOLVER\.MIN_LR: found 1, expected at most SOLVER\.BASE_LR \("),
        (("SOLVER.BASE_LR", 0.0, "SOLVER.MIN_LR", 0.0), "SOLVER.BASE_LR: found 0, expected a lear"),
        (("SOLVER.BASE_LR", 1e-320, "SOLVER.MIN_LR", 0.0), "SOLVER.BASE_LR: found 1e-320, expecte"),
        (("LOSS.MASK", 0.0, "LOSS.DICE", 0.0, "TRUSTY.KIND", "conv"),
         "LOSS: found MASK and DICE 0 with TRUSTY.KIND conv, whose map learns apart, expected"),
        (("LOSS.MASK", 0.0, "LOSS.DICE", 0.0, "TRUSTY.KIND", "relative"), "KIND relative, whose"),
        (("LOSS.MASK", 0.0, "LOSS.DICE", 0.0, "TRUSTY.ENABLED", False), "MASK and DICE 0, expect"),
        (("LOSS.MASK", 0.0, "LOSS.DICE", 0.0, "LOSS.TRUSTY", 0.0), "MASK and DICE 0, expected on"),
        (("LOSS.MASK", 0.0, "LOSS.DICE", 0.0), ""),
        (("SOLVER.BASE_LR", 0.0, "SOLVER.MIN_LR", 0.0, "TRUSTY.KIND", "conv"),
         "SOLVER.BASE_LR: found 0, expected a learning rate above 0, .*: no class would be learn"),
        # The map of a model that is trained already.
        (("SOLVER.BASE_LR", 0.0, "SOLVER.MIN_LR", 0.0, "TRUSTY.KIND", "conv",
          "MODEL.WEIGHTS", "a.pth"), ""),
        (("MODEL.CLIP.LAST_BLOCK", "naclip", "TRUSTY.KIND", "conv", "TRUSTY.CONV.BASE_LR", 0.0),
         "^MODEL.TAGCLIP.TRUSTY.CONV.BASE_LR: found 0, expected .*: nothing would be learned"),
        (("MODEL.CLIP.LAST_BLOCK", "naclip", "LOSS.MASK", 0.0, "LOSS.DICE", 0.0), ""),
        (("INPUT.SCALE_RANGE", [0.01, 2.0], "INPUT.MIN_SIZE_TRAIN", (512, 96)),
         r"SCALE_RANGE: found \[0.01, 2.0\] with INPUT.MIN_SIZE_TRAIN \[512, 96\], which makes "
         "sides of 1 pixel, expected at least 14; raise one of them"),
        (("INPUT.SCALE_RANGE", [0.1, 1.0], "INPUT.MAX_SIZE_TRAIN", 139), "MAX_SIZE_TRAIN 139, wh"),
        (("INPUT.SCALE_RANGE", [0.1, 1.0], "INPUT.MAX_SIZE_TRAIN", 140), ""),
        (("INPUT.SCALE_RANGE", [0.1, 1.0], "INPUT.MAX_SIZE_TRAIN", 0), ""),
        (("INPUT.SCALE_RANGE", [0.5, 1.0], "INPUT.MIN_SIZE_TRAIN", (28,)), ""),
    ],
)  # fmt: skip
def test_a_training_that_cannot_be_meant(opts: tuple, message: str) -> None:
    """Evaluation of a model does not mind how it was trained."""
    names = [f"MODEL.TAGCLIP.{k}" if k.startswith(("LOSS", "TRUSTY")) else k for k in opts[::2]]
    cfg = load_config("", [word for pair in zip(names, opts[1::2], strict=True) for word in pair])
    check_config(cfg)
    with pytest.raises(ConfigError, match=message) if message else nullcontext():
        check_training(cfg)


def test_a_switch_that_is_off_hides_its_keys() -> None:
    sizes = ["INPUT.CROP.TYPE", "relative", "TEST.AUG.MIN_SIZES", ()]
    cfg = load_config("", sizes)
    for switch, key in (("INPUT.CROP.ENABLED", "CROP.TYPE"), ("TEST.AUG.ENABLED", "MIN_SIZES")):
        with pytest.raises(ConfigError, match=rf"{key}: found"):
            check_config(set_value(cfg, switch, True))


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("SOLVER.REFERENCE_WORLD_SIZE", 3), r"REFERENCE_WORLD_SIZE: found 3, .*BATCH \(16\), or"),
        (("SOLVER.OPTIMIZER", "SGD", "SOLVER.NESTEROV", True, "SOLVER.MOMENTUM", 0.0),
         r"NESTEROV: found True with MOMENTUM 0, expected False or"),
        (("MODEL.DEVICE", "meta"), r"MODEL\.DEVICE: found 'meta', expected cuda or cpu"),
        (("MODEL.DEVICE", "cpu:5"), r"MODEL\.DEVICE: found 'cpu:5', expected cuda or cpu"),
        (("PROJECTS", ["a", "a"]), r"PROJECTS: found 'a' 2 times, expected each once; leave"),
        (("TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", [64, 96, 64]),
         r"TEST\.AUG\.MIN_SIZES: found 64 2 times, expected each once; leave the others out"),
        (("DATASETS.TEST", ("a", "b", "a")), r"TEST: found 'a' 2 times, expected each once; leave"),
        (("TEST.EXPECTED_RESULTS", [["sem_seg", "mIoU", 50.0, 1.0]]),
         r"EXPECTED_RESULTS: found .* for 0 datasets in DATASETS\.TEST, expected lists of"),
        (("TEST.EXPECTED_RESULTS", [["sem_seg", "mIoU", 50.0]], "DATASETS.TEST", ("a",)),
         r"EXPECTED_RESULTS: found .* for 1 datasets in DATASETS\.TEST, expected lists of"),
        *(
            (("TEST.EXPECTED_RESULTS", [["sem_seg", "mIoU", *row]], "DATASETS.TEST", ("a",)),
             r"EXPECTED_RESULTS: found .*, expected lists of .* \(0 to 100 each\)")
            for row in ([math.nan, 1.0], [50.0, math.nan], [50.0, -1.0], [50.0, math.inf],
                        [True, True], [101.0, 1.0], [-1, 0], [10**400, 1], [None, 1], ["50", 1])
        ),
        (("MODEL.DEVICE", "gpu"), r"MODEL\.DEVICE: found 'gpu', expected cuda or cpu"),
        (("MODEL.DEVICE", "cuda:999999999999999999999"), r"MODEL\.DEVICE: found 'cuda:9*', exp"),
    ],
)  # fmt: skip
def test_keys_that_have_to_do_with_each_other(opts: tuple, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("", opts)


EVERY = sorted(leaves(load_config()))
odd = st.sampled_from(ODD_ITEMS) | st.integers() | st.floats() | st.text(max_size=5)


@settings(max_examples=400, deadline=None)
@given(name=st.sampled_from(NAMES * 2 + EVERY), value=odd | st.lists(odd, max_size=4))
@example(name="INPUT.CROP.ENABLED", value=True)
def test_any_value_is_accepted_or_refused_in_one_line(name: str, value: Any) -> None:
    """As a program sets it, and as on the command line; detectron2's other keys, too."""
    by_program = partial(check_config, set_value(load_config(), name, value))
    # A switch can bring keys into play whose values are the trouble.
    named = [name, *(key.name for key in KEYS if key.when == name)]
    for give in (by_program, partial(load_config, "", [name, value])):
        try:
            give()
        except TagCLIPError as error:
            assert "\n" not in str(error) and any(key in str(error) for key in named)


def test_the_table_has_every_key_that_a_run_reads(
    tiny_cfg: CfgNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys of detectron2 that only it reads have rows, too: their odd values would break it."""
    config = write_run_config(tiny_cfg, tmp_path)
    options = ("TEST.EVAL_PERIOD", "2", "SOLVER.CLIP_GRADIENTS.ENABLED", "True")
    cfg = load_config(config, [*options, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm"])
    for name, node in sections(cfg):
        node.__dict__["where"] = name
    read, get = set(), CfgNode.__getattr__

    def listen(node: CfgNode, name: str) -> Any:
        value = get(node, name)
        # Others hold defaults, with which this one is compared.
        if not isinstance(value, CfgNode) and "where" in node.__dict__:
            read.add(f"{node.__dict__['where']}{name}")
        return value

    monkeypatch.setattr("yacs.config.CfgNode.__getattr__", listen)
    ZeroShotTrainer.check(cfg, weights="", train=True)
    trainer = ZeroShotTrainer(cfg)
    trainer.train()
    assert {"SOLVER.MAX_ITER", "TEST.EVAL_PERIOD", "MODEL.CLIP.NAME"} <= read <= {*NAMES}


def sections(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, CfgNode]]:
    yield prefix, node
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from sections(value, f"{prefix}{key}.")


@pytest.mark.parametrize(
    ("device", "gpus", "expected"),
    [
        ("cpu", 0, "cpu"),
        ("cuda", 0, "cpu"),
        ("cuda:99", 0, "cpu"),
        ("cuda", 2, "cuda"),
        ("cuda:1", 2, "cuda:1"),
        ("cuda:2", 2, None),
        ("cuda:99", 1, None),
    ],
)
def test_a_gpu_that_is_there_or_the_cpu_or_one_line(
    device: str, gpus: int, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    if expected is not None:
        assert available_device(device) == expected
    if expected == device:
        check_device(device)
        return
    # Who trains without tools/train_net.py is told.
    with pytest.raises(ConfigError, match=rf"MODEL.DEVICE: found '{device}' on a machine with"):
        check_device(device)


# Without these, nothing is built of the keys that they are about.
SWITCHES = {
    "TEST.AUG": ("TEST.AUG.ENABLED", True),
    "CLIP_GRADIENTS": ("SOLVER.CLIP_GRADIENTS.ENABLED", True),
    "TRUSTY.CONV": ("MODEL.TAGCLIP.TRUSTY.KIND", "conv"),
    "MOMENTUM": ("SOLVER.OPTIMIZER", "SGD"),
    "NORM_TYPE": ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm"),
    "NESTEROV": ("SOLVER.OPTIMIZER", "SGD"),
}


# What MODEL.COMPILE builds takes half a minute.
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name == "MODEL.COMPILE")) for name in NAMES],
)
def test_what_is_accepted_can_be_built(name: str, tiny_cfg: CfgNode, tmp_path: Path) -> None:
    """The parts of a run, made of every odd value that the table accepts."""
    write_tiny_dataset(tmp_path, train=2, val=1)
    switches = [opts for part, opts in SWITCHES.items() if part in name]
    cfg = changed(tiny_cfg, *chain(*switches))
    for value in ODD_VALUES:
        try:
            ZeroShotTrainer.check(set_value(cfg, name, value), weights="", train=True)
        except TagCLIPError as error:
            assert "\n" not in str(error)
