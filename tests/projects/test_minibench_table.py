"""MiniBench's table: what its lines say, against figures worked out by hand."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.config import CfgNode
from helpers.bench import files_below
from helpers.locks import at_work
from helpers.minibench_results import table_result
from helpers.tiny_run import changed, exit_of, load_tool, short_run, train
from scipy import stats

from tagclip import Vocabulary, load_config
from tagclip.errors import CheckpointError, ConfigError, OutputError
from tagclip.projects.minibench import VOCABULARY_JSON
from tagclip.projects.minibench.table import (
    ALL_ROWS,
    CONV_ROWS,
    FREE_ROWS,
    PROTOCOL_RUNS,
    REJECTED_COLUMNS,
    ROWS,
    STRICT_ROWS,
    TABLE_RUNS,
    format_free_summary,
    format_protocols,
    format_summary,
    format_table,
    mean_and_spread,
    paired_interval,
)
from tagclip.projects.minibench.table_curves import draw_curves
from tagclip.projects.minibench.table_runs import (
    RUNS,
    SPLITS,
    gates_of,
    run_config,
    swap_unseen_prompts,
    trained_model,
)

REJECTED = [*REJECTED_COLUMNS.values()]
PROJECT = Path(__file__).resolve().parents[2] / "projects" / "MiniBench"


@pytest.fixture
def results() -> dict[tuple[str, str, int], dict[str, Any]]:
    hiou = {"ZegCLIP": (50, 52, 54), "TagCLIP conv": (60, 66, 66)}
    found = {
        ("composition", run, seed): table_result("composition", run, seed, value)
        for run, values in hiou.items()
        for seed, value in enumerate(values)
    }
    for run, hiou in (("MaskCLIP", 20), ("NACLIP", 18)):
        found["composition", run, 0] = table_result("composition", run, 0, hiou)
    for run, values in (("MaskCLIP conv", (30, 31, 32)), ("NACLIP conv", (33, 33, 36))):
        for seed, value in enumerate(values):
            found["composition", run, seed] = table_result("composition", run, seed, value)
    found["composition", "ZegCLIP", 0]["swapped"] = 3.0
    return found


def test_lines_hold_means_and_paired_differences(results: dict) -> None:
    text = format_table(results)
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if "|" in line}
    base = "**ZegCLIP** (`nnn`, no trusty map)"
    assert lines[base] == (
        f"| {base} | none | from val, 0.20 | 62.0 ± 2.0 | 42.0 ± 2.0 | 53.0 ± 2.0 |  "
        f"| {paired_interval([-10, -14, -12])} |"
    )
    # 60, 66, 66 at the given bias, 51, 53, 55 with the chosen one.
    interval = stats.ttest_1samp([9.0, 13.0, 11.0], 0).confidence_interval()
    head = "**TagCLIP, convolutional head**"
    assert lines[head].endswith(
        f"| 64.0 ± 3.5 | +11.0 [{interval.low:+.1f}, {interval.high:+.1f}] "
        f"| {paired_interval([-1, -1, -1])} |"
    )
    assert "| MaskCLIP | none | from val, 0.20 | 30.0 | 10.0 | 21.0 |  |  |" in text
    # Nothing is random without training.
    assert "| NACLIP | none | from val, 0.20 | 28.0 | 8.0 | 19.0 | -2.0 |  |" in text
    interval = paired_interval([3, 2, 4])
    assert lines["NACLIP + convolutional head"].endswith(f"| 34.0 ± 1.7 |  | {interval} |")
    summary = format_free_summary(results)
    assert f"| 44.0 / 24.0 / **34.0 ± 1.7** |  |  | {interval} |" in summary
    assert "| NACLIP | 28.0 / 8.0 / **19.0** |  |  | -2.0 |" in summary
    assert "supervised" not in text
    assert lines["TagCLIP conv"].endswith(
        "| 91.0 ± 1.0 | 70.0 ± 0.0 | 22.0 ± 2.0 | 80.0 ± 0.0 | 60.0 ± 0.0 | 30.0 ± 0.0 "
        "| 91.0 ± 1.0 | 5.0 ± 0.0 | 95.0 ± 0.0 | 80.0 ± 0.0 | 40.0 ± 0.0 |"
    )
    heads = ["map AUROC", "map AUPR", "map FPR95", "score gap AUROC", "score gap AUPR"]
    assert f"| run | {' | '.join(heads)} | score gap FPR95 | map AUROC, class-balanced |" in text
    assert "Control, ZegCLIP with the texts of unseen classes swapped: U 3.0." in text


def test_the_summary_has_a_column_for_each_split(results: dict) -> None:
    text = format_summary(results)
    assert "| model | composition S / U / h |  |  | h minus ZegCLIP |" not in text
    assert "| **convolutional head**, bias 0 | 74.0 / 54.0 / **64.0 ± 3.5** |" in text
    assert "| +11.0 [" in text and len({line.count("|") for line in text.splitlines()}) == 1


def test_the_protocols_have_a_table_of_their_own() -> None:
    strict, everything = "relative without unseen images", "TagCLIP conv"
    found = {
        ("composition", run, seed): table_result("composition", run, seed, value)
        for run, values in ((strict, (50, 54)), (everything, (60, 66)), ("relative", (57, 65)))
        for seed, value in enumerate(values)
    }
    for (_, run, seed), content in found.items():
        if run != everything:
            names = [n for s, n in REJECTED if s == "rejected"]
            content["rejected"] = dict.fromkeys(names, 4.0 + seed)
            content["alone"] = dict.fromkeys([n for s, n in REJECTED if s == "alone"], 1.0)
    text = format_protocols(found)
    lines = text.splitlines()
    assert "**composition** (2 seeds), training images without unseen objects:" in lines
    interval = paired_interval([-3, -1])
    relative = [line for line in lines if line.startswith("| relative map | product | 0.1 |")]
    assert relative[-1].endswith(f"| {interval} | {interval} |")
    rejected = [line for line in lines if line.startswith(f"| {strict} | 4.5 ± 0.7 |")]
    assert rejected == [f"| {strict} {'| 4.5 ± 0.7 ' * 6}{'| 1.0 ± 0.0 ' * 5}|"]
    assert f"| {strict} | 90.5" in text and f"| {everything} | 90.5" in text
    assert "supervised" not in text and strict not in format_table(found)


def test_intervals_are_those_of_students_t() -> None:
    values = [1.0, 2.5, -0.5, 4.0, 3.0]
    expected = stats.ttest_1samp(values, 0).confidence_interval()
    assert paired_interval(values) == f"+2.0 [{expected.low:+.1f}, {expected.high:+.1f}]"
    assert mean_and_spread([2.0]) == "2.0"
    assert mean_and_spread([1.0, 3.0]) == f"2.0 ± {np.std([1, 3], ddof=1):.1f}"


def test_every_row_and_gate_exists() -> None:
    rows = (*ROWS, *FREE_ROWS, *CONV_ROWS, *STRICT_ROWS, *ALL_ROWS)
    assert {*TABLE_RUNS, *PROTOCOL_RUNS} == RUNS.keys()
    for row in rows:
        assert row.gate in RUNS[row.run].gates
    assert {row.run for row in rows} == RUNS.keys()
    for run in RUNS.values():
        assert not run.start or RUNS[run.start].start == ""
        for split in SPLITS:
            assert list(gates_of(run, split)) == list(run.gates)


@pytest.mark.parametrize("name", RUNS)
def test_every_run_has_a_config(name: str) -> None:
    for split in SPLITS:
        cfg = load_config(RUNS[name].config.format(split), RUNS[name].opts)
        assert "minibench" in cfg.PROJECTS
        if name != "supervised":
            assert split == cfg.DATASETS.ZERO_SHOT.SPLIT


def test_the_command_runs_what_others_start_from_first() -> None:
    tool = load_tool(PROJECT / "run_table.py")
    keys = tool.wanted_runs(2)
    assert len(tool.wanted_runs(2, ["NACLIP", "NACLIP conv"])) == 3 * len(SPLITS)
    named = {name for _, name, _ in tool.wanted_runs(1, ["transductive conv"])}
    assert named == {"transductive conv", "TagCLIP conv"}
    # Where that is not run with a seed, neither is this.
    named = {(name, seed) for _, name, seed in tool.wanted_runs(2, ["transductive token"])}
    assert named == {("transductive token", 0), ("TagCLIP token seen", 0)}
    assert len(keys) == len(set(keys))
    for split, name, seed in keys:
        start = RUNS[name].start
        assert not start or keys.index((split, start, seed)) < keys.index((split, name, seed))
    assert sum(name == "MaskCLIP" for _, name, _ in keys) == len(SPLITS)


def test_a_swap_moves_prompts_between_unseen_classes_only() -> None:
    vocabulary = Vocabulary.from_json(VOCABULARY_JSON, "noun_fence_board")
    swapped = swap_unseen_prompts(vocabulary)
    pairs = zip(vocabulary.classes, swapped.classes, vocabulary.seen_mask, strict=True)
    for before, after, seen in pairs:
        assert before.name == after.name and (before.prompts == after.prompts) == bool(seen)
    assert sorted(map(str, vocabulary.prompts)) == sorted(map(str, swapped.prompts))


def test_curves_show_every_seed(results: dict) -> None:
    for split in SPLITS[1:]:
        results |= {(split, *key[1:]): value for key, value in list(results.items())}
    for key in list(results):
        for run in ("TagCLIP token seen", "TagCLIP token novel"):
            results[key[0], run, 0] = table_result(key[0], run, 0, 40)
    panels = draw_curves(results).axes
    assert [axes.get_title() for axes in panels] == list(SPLITS)
    # Besides the grey lines of equal hIoU and the points of the given bias.
    lines = [
        line.get_xydata().tolist()
        for line in panels[0].get_lines()
        if len(line.get_xdata()) > 1 and line.get_color().startswith("#")
    ]
    assert [[0.0, 70.0], [50, 50], [60.0, 0.0]] in lines and len(lines) == 3 + 1 + 1 + 3


def test_documents_take_whole_tables_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = load_tool(PROJECT / "run_table.py")
    words = ["--docs", "--output", str(tmp_path / "out"), "--runs", *PROTOCOL_RUNS[:-1]]
    monkeypatch.setattr("sys.argv", ["run_table.py", *words])
    assert exit_of(tool.invoke_main).startswith("--docs: found --runs of no whole table")
    assert not any(tmp_path.iterdir())
    for name in ("README", "RESULTS"):
        monkeypatch.setattr(tool, name, tmp_path / f"{name}.md")
    (tmp_path / "assets").mkdir()
    before = "a\n<!-- table: begin -->\n<!-- table: end -->\nb\n"
    (tmp_path / "RESULTS.md").write_text(before)
    marks = "<!-- protocols: begin -->\nold\n<!-- protocols: end -->\n"
    (tmp_path / "README.md").write_text(before + marks)
    output = tmp_path / "out"
    output.mkdir()
    keys = tool.wanted_runs(2, PROTOCOL_RUNS)
    for key in keys:
        content = table_result(*key, 20.0)
        for section in ("rejected", "alone"):
            content[section] = {n: 1.0 for s, n in REJECTED if s == section}
        tool.result_file(output, key).write_text(json.dumps(content))
    text = tool.write_table(output, keys, docs=True)
    readme = (tmp_path / "README.md").read_text()
    assert (tmp_path / "RESULTS.md").read_text() == before and readme.startswith(before)
    assert "old" not in readme and "**noun_dice_board** (2 seeds)" in readme
    assert readme.split("begin -->\n")[-1].split("<!--")[0] in text
    assert (tmp_path / "assets" / "protocols.png").is_file()
    assert not (tmp_path / "assets" / "curves.png").exists()


def test_results_of_an_earlier_version_are_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tool = load_tool(PROJECT / "run_table.py")
    keys = tool.wanted_runs(1, ["MaskCLIP"])
    for key in keys[1:]:
        content = table_result(*key, 20.0)
        if key == keys[1]:
            del content["detector AUPR"]
        tool.result_file(tmp_path, key).write_text(json.dumps(content))
    done, written = [], []
    monkeypatch.setattr(tool, "run_as_process", lambda output, key: done.append(key))
    monkeypatch.setattr(tool, "write_table", lambda output, found, docs: written.append(found))
    words = ["--seeds", "1", "--output", str(tmp_path), "--runs", "MaskCLIP"]
    monkeypatch.setattr("sys.argv", ["run_table.py", *words])
    tool.invoke_main()
    assert sorted(done) == sorted(keys[:2]) and written == [keys]
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "earlier version" in line]
    assert line.startswith(f"{tmp_path}: found 1 of 3 results without all figures")


@pytest.mark.parametrize("is_whole", [False, True])
def test_a_damaged_result_is_named_before_anything_is_trained(
    is_whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = load_tool(PROJECT / "run_table.py")
    key, done = tool.wanted_runs(1, ["MaskCLIP"])[0], []
    path, content = tool.result_file(tmp_path, key), json.dumps(table_result(*key, 20.0))
    other = json.dumps(table_result("noun_dice_board", "SCLIP", 0, 20.0))
    path.write_text(other if is_whole else content[:-9])

    def run(output: Path, key: tuple[str, str, int]) -> None:
        done.append(key)
        tool.result_file(output, key).write_text(json.dumps(table_result(*key, 20.0)))

    monkeypatch.setattr(tool, "run_as_process", run)
    args = tool.parse_args(["--seeds", "1", "--output", str(tmp_path), "--runs", "MaskCLIP"])
    found = "the result of split noun_dice_board, run SCLIP, seed 0" if is_whole else "no result in"
    expected = f"expected that of split {key[0]}, run MaskCLIP, seed 0; remove it, and the same"
    with pytest.raises(ConfigError, match=f"^{path}: found {found}.*, {expected}"):
        tool.main(args)
    assert not done
    path.unlink()
    tool.main(args)
    assert key in done and (tmp_path / "table.md").is_file()


def test_documents_are_written_in_a_checkout_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is said before anything is trained."""
    tool = load_tool(PROJECT / "run_table.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tool, "RESULTS", tmp_path / "results.md")
    monkeypatch.setattr("sys.argv", ["run_table.py", "--docs"])
    assert exit_of(tool.invoke_main).startswith(f"--docs: found no {tmp_path}/results.md, expected")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("script", "words", "found"),
    [
        ("run_table.py", ["nouns", "MaskCLIP", "0"], "'nouns', expected one of composition, "),
        ("run_table.py", ["composition", "Mask", "0"], "'Mask', expected one of "),
        ("run_table.py", ["composition", "MaskCLIP", "a"], "the seed 'a', expected 0 to "),
        ("run_table.py", ["composition", "MaskCLIP", "-1"], "the seed '-1', expected 0 to "),
        ("compare_novelty.py", ["nouns", "0"], "'nouns', expected one of composition, "),
        ("compare_novelty.py", ["composition", "1e3"], "the seed '1e3', expected 0 to "),
    ],
)
def test_a_run_that_there_is_not_is_named(
    script: str, words: list[str], found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [script, "--output", str(tmp_path / "out"), "--one", *words])
    line = exit_of(load_tool(PROJECT / script).invoke_main)
    assert line.startswith(f"--one: found {found}") and len(line.splitlines()) == 1
    assert not any(tmp_path.iterdir())


def test_the_training_of_another_config_is_not_taken_for_a_run_s(
    tiny_cfg: CfgNode, tmp_path: Path
) -> None:
    """The table would show the figures of one under the name of the other."""
    cfg = short_run(tiny_cfg, tmp_path, "SOLVER.MAX_ITER", 2)
    train(cfg)
    assert trained_model(cfg) is not None
    output = Path(cfg.OUTPUT_DIR)
    for is_finished in (True, False):
        if not is_finished:
            (output / "model_final.pth").rename(output / "model_0000001.pth")
            (output / "last_checkpoint").write_text("model_0000001.pth")
        with pytest.raises(ConfigError, match="finished run of .*SEED 9 .was 0.*--output"):
            trained_model(changed(cfg, "SEED", 9, "SOLVER.MAX_ITER", 4))


def test_a_run_whose_start_is_missing_says_how_to_do_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        run_config("composition", "transductive token", 3, tmp_path)
    folder = tmp_path / "composition-TagCLIP_token_seen-3"
    assert str(caught.value) == (
        f"{folder}/model_0000159.pth: no such checkpoint, from which 'transductive token' starts; "
        f"do that run first: tagclip minibench table --output {tmp_path} --one composition "
        "'TagCLIP token seen' 3"
    )
    assert not any(tmp_path.iterdir())


def test_a_run_that_another_process_trains_is_left_alone(tiny_cfg: CfgNode, tmp_path: Path) -> None:
    cfg = short_run(tiny_cfg, tmp_path)
    with at_work(Path(cfg.OUTPUT_DIR)):
        before = files_below(Path(cfg.OUTPUT_DIR))
        with pytest.raises(ConfigError, match="is at work in this folder"):
            trained_model(cfg)
        assert files_below(Path(cfg.OUTPUT_DIR)) == before


def test_why_a_run_fails_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last line, or, where the disk has no room for one, that."""
    tool, log = load_tool(PROJECT / "run_table.py"), tmp_path / "a.log"
    (script := tmp_path / "s.py").write_text("print('first'); raise SystemExit('the reason')")
    words = [str(script), "--one", "a", "0"]
    line = exit_of(tool.run_script, words, log)
    assert line == f"a 0: exit code 1 (the reason); see {log}"

    def full(folder: Path, size: int) -> None:
        raise OutputError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))

    monkeypatch.setattr(tool, "probe_folder", full)
    reason = f"{tmp_path} cannot be written (No space left on device): free space"
    assert exit_of(tool.run_script, words, log) == f"a 0: exit code 1, {reason}; see {log}"


@pytest.mark.parametrize(
    ("script", "key", "words", "option"),
    [
        ("run_table.py", ["composition", "MaskCLIP", "0"], "--runs MaskCLIP", "--runs"),
        ("run_table.py", ["composition", "MaskCLIP", "0"], "--seeds 5", "--seeds"),
        ("run_table.py", ["composition", "MaskCLIP", "0"], "--jobs 1 --docs", "--workers, --docs"),
        ("compare_novelty.py", ["composition", "0"], "--first-seed 0", "--first-seed"),
        ("compare_novelty.py", ["composition", "0"], "--docs --workers=2", "--workers, --docs"),
    ],
)
def test_options_of_the_table_beside_one_run_are_refused(
    script: str,
    key: list[str],
    words: str,
    option: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also with the values that they have without it."""
    tool = load_tool(PROJECT / script)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tool, "run_here", lambda *_: None)
    words = ["--output", str(tmp_path / "out"), *words.split(), "--one", *key]
    monkeypatch.setattr("sys.argv", [script, *words])
    assert exit_of(tool.invoke_main) == 2
    assert capsys.readouterr().err.endswith(f"no table: give it without {option}\n")
    monkeypatch.setattr("sys.argv", [script, *words[:2], "--one", *key])
    assert exit_of(tool.invoke_main) is None


@pytest.mark.parametrize(
    ("script", "words", "place", "is_folder"),
    [
        ("run_table.py", [], "composition-ZegCLIP-0.log", True),
        ("run_table.py", [], "noun_dice_board-ZegCLIP-1.json", True),
        ("run_table.py", [], "noun_dice_board-ZegCLIP-1", False),
        ("run_table.py", [], "table.md", True),
        ("run_table.py", [], "curves.png", True),
        ("run_table.py", [], "words.png", True),
        ("run_table.py", ["--one", "composition", "ZegCLIP", "0"], "composition-ZegCLIP-0", False),
        ("compare_novelty.py", [], "composition-{}-0-novelty-test.log", True),
        ("compare_novelty.py", ["--one", "composition", "0"], "composition-{}-0", False),
    ],
)
def test_what_is_in_the_way_of_a_run_is_named_before_any_begins(
    script: str,
    words: list[str],
    place: str,
    is_folder: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tool, begun = load_tool(PROJECT / script), []
    for name in ("run_here", "run_as_process"):
        monkeypatch.setattr(tool, name, lambda *key: begun.append(key))
    path = tmp_path / place.format("relative_without_unseen_images")
    path.mkdir() if is_folder else path.write_text("no folder")
    if not words:
        words = ["--seeds", "2", *(["--runs", "ZegCLIP"] if script == "run_table.py" else [])]
    monkeypatch.setattr("sys.argv", [script, "--output", str(tmp_path), *words])
    reason = "Is a directory" if is_folder else "Not a directory"
    line = exit_of(tool.invoke_main)
    assert line.startswith(f"OutputError: {path}: cannot be written ({reason}); ")
    assert not begun and len(line.splitlines()) == 1
