"""Every command of README and docs: read in `make test`, run in their order in `make test-slow`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from helpers.documents import pages
from helpers.paths import REPOSITORY
from helpers.shell_blocks import Block, code_blocks, commands_of, masked, metrics_in, run_blocks

from tagclip.cli.commands import find_command, load_command
from tagclip.config import load_config

# Its sections exclude each other: tests/docs/test_own_data.py runs each.
OWN_DATA = "docs/own_data.md"
# What is not run, and why; a new block is a new line here.
NOT_RUN = Path(__file__).with_name("not_run.json")
# int8 changes a metric by some hundredths.
TOLERANCE = 0.3

TEXTS = {page: (REPOSITORY / page).read_text(encoding="utf-8") for page in pages()}
BLOCKS = {page: blocks for page, text in TEXTS.items() if (blocks := code_blocks(text))}
RUN = [
    page
    for page, blocks in BLOCKS.items()
    if page != OWN_DATA and not all(block.why_not for block in blocks)
]


def not_run() -> dict[str, list[str]]:
    """Page -> why each of its blocks that are not run is not."""
    found = {page: [b.why_not for b in blocks if b.why_not] for page, blocks in BLOCKS.items()}
    return {page: rows for page, rows in found.items() if rows}


def test_pages_are_found() -> None:
    assert list(BLOCKS)[:2] == ["README.md", "docs/first_steps.md"]
    assert len(RUN) > 8
    fence = re.compile(r"^\s*```(?:sh|bash|shell|console)\b", re.MULTILINE)
    fences = sum(len(fence.findall(text)) for text in TEXTS.values())
    assert fences == sum(block.kind == "sh" for blocks in BLOCKS.values() for block in blocks)


def test_blocks_that_are_not_run_are_known() -> None:
    """Another one is a decision: write it into not_run.json."""
    assert not_run() == json.loads(NOT_RUN.read_text())


@pytest.mark.parametrize("between", ["# Next\n", "<!-- not run: why -->\n```sh\nls\n```\n"])
def test_a_text_is_printed_by_a_block_of_its_section(between: str) -> None:
    run, text = "```sh\nls\n```\n", "```text\na\n```\n"
    assert code_blocks(f"{run}words # no heading\n{text}") == [Block(2, "ls\n", "", "sh", "a\n")]
    with pytest.raises(ValueError, match="a text that no block above prints"):
        code_blocks(f"{run}{between}{text}")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the configs that pages write: another process may read those pages."""
    folder = tmp_path_factory.mktemp("read")
    for block in (block for blocks in BLOCKS.values() for block in blocks):
        if block.kind == "sh" and "cat >" in block.text:
            commands_of(block, folder)
    return folder


def test_commands_are_what_bash_makes_of_them(written: Path) -> None:
    text = """
        X=a.yaml
        run() { env A=1 tagclip train --config-file $X $1; }
        run "SEED 1"; (cd nowhere && tagclip score "a b") | head
        torchrun --no-python tagclip evaluate   # tagclip no
        srun bash -c 'exec tagclip train --dist-url "tcp://$0:1"' host > out
        make minibench \\
            || tagclip minibench
    """
    assert commands_of(Block(1, text, ""), written) == [
        ["train", "--config-file", "a.yaml", "SEED", "1"],
        ["evaluate"],
        ["train", "--dist-url", "tcp://host:1"],
    ]


@pytest.mark.parametrize("page", BLOCKS)
def test_commands_parse_and_configs_resolve(
    page: str, written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(written)
    for block in BLOCKS[page]:
        if block.kind == "python":
            compile(block.text, f"{page}:{block.line}", "exec")
            continue
        commands = commands_of(block, written)
        assert len(commands) >= block.text.count("\ntagclip ") + block.text.startswith("tagclip ")
        for words in commands:
            check_command(words, f"{page}:{block.line}", is_run=not block.why_not)


def check_command(words: list[str], place: str, is_run: bool) -> None:
    """Parse a command line as its tool does, and build the config that it names."""
    name = find_command(words)
    assert name, f"{place}: tagclip {' '.join(words)}: no such command"
    try:
        parsed = load_command(name).make_parser().parse_args(words[len(name.split()) :])
    except SystemExit as error:
        raise AssertionError(f"{place}: tagclip {' '.join(words)}") from error
    if not (config := getattr(parsed, "config_file", None)):
        return
    # That of a run is there once the run is.
    if is_run and config.startswith("output/"):
        return
    load_config(config, getattr(parsed, "opts", None) or ())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh folder in which the README has been followed."""
    folder = tmp_path_factory.mktemp("docs")
    run_blocks(BLOCKS["README.md"], folder, "README.md")
    return folder


def ranges() -> dict[str, tuple[float, float]]:
    """Metric -> the range in which it lies with seed 0, as the README says."""
    rows = re.findall(r"^\|(.*)\|$", TEXTS["README.md"], re.MULTILINE)
    (head,) = (row for row in rows if "mIoU-unseen" in row)
    (seed_0,) = (row for row in rows if row.startswith(" seed 0, "))
    names, cells = ([cell.strip() for cell in row.split("|")[1:]] for row in (head, seed_0))
    return {
        name: tuple(map(float, cell.split(" to "))) for name, cell in zip(names, cells, strict=True)
    }


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_every_block_runs(page: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if page == "README.md":
        # Run by the fixture.
        rows = [f"{page}: {row}" for page, rows in not_run().items() for row in rows]
        with capsys.disabled():
            print("\nNot run:", *rows, sep="\n")
        (path,) = folder.glob("output/minibench/inference/*/metrics.json")
        metrics = json.loads(path.read_text())["metrics"]
        for name, (low, high) in ranges().items():
            assert low - 0.05 <= metrics[name] <= high + 0.05, (name, metrics[name])
        return
    printed = run_blocks(BLOCKS[page], folder, page)
    for block in BLOCKS[page]:
        if block.prints:
            found, expected = (masked(text) for text in (printed[block.line], block.prints))
            positions = range(len(found) - len(expected) + 1)
            assert any(found[i : i + len(expected)] == expected for i in positions), (
                f"{page}:{block.line} prints other lines\n{printed[block.line]}"
            )
            check_ranges(printed[block.line], f"printed by {page}:{block.line}")


def check_ranges(text: str, place: str) -> None:
    """Metrics of a table lie in the ranges of the README."""
    limits = ranges()
    for name, values in metrics_in(text, list(limits)).items():
        low, high = limits[name]
        assert values, (place, name)
        for value in values:
            assert low - TOLERANCE <= value <= high + TOLERANCE, (place, name, value)


@pytest.mark.parametrize("page", BLOCKS)
def test_sample_output_lies_in_the_documented_ranges(page: str) -> None:
    for block in BLOCKS[page]:
        check_ranges(block.prints, f"{page}:{block.line}")


def test_ranges_are_compared() -> None:
    low, high = ranges()["mIoU"]
    check_ranges(f"| mIoU | {low} | {high} | +99.00 |", "")
    with pytest.raises(AssertionError):
        check_ranges(f"| mIoU | {low} | {high + 1} |", "")
