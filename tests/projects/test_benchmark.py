"""The benchmark runs, its reference is right, and its meters measure."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny_run import exit_of

from tagclip.errors import ConfigError, TagCLIPError
from tagclip.evaluation.metrics import confusion_matrix
from tagclip.modeling.precision import has_instructions
from tagclip.projects.benchmark.measure import Stopwatch, Timing, alternate, memory_growth
from tagclip.projects.benchmark.released import (
    released_confusion,
    released_fusion,
    released_labels,
    released_losses,
)
from tagclip.projects.benchmark.report import format_markdown
from tagclip.projects.benchmark.workload import QUICK, Workload
from tagclip.utils.cli import run_tool


@pytest.fixture(scope="module")
def tool(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark", repository / "tools/benchmark.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    return Workload(QUICK, "cpu", tmp_path_factory.mktemp("workload"))


@pytest.mark.slow
def test_everything_runs_on_tiny_sizes(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    page, images = tmp_path / "docs" / "PERFORMANCE.md", tmp_path / "images"
    command = ["--quick", "--runs", "1", "--threads", "1", "--curves", "--json"]
    tool.main(tool.parse_args([*command, "--write", str(page), "--images", str(images)]))
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    left_out = set() if has_instructions("cpu", torch.bfloat16) else {"precision"}
    assert {row["part"].lower() for row in result["rows"]} == set(tool.PART_NAMES) - left_out
    missing = [row["name"] for row in result["rows"] if row["value"] is None]
    assert all("mmsegmentation" in name for name in missing)
    assert all(np.isfinite(row["value"]) for row in result["rows"] if row["value"] is not None)
    assert {bar["name"] for bar in result["bars"] if "CHECKPOINT" in bar["name"]}
    axes = {curve["axis"] for curve in result["curves"]}
    assert axes == {"classes", "side", "prompts"}
    text = page.read_text()
    for axis in axes:
        assert (images / f"performance_{axis}.png").stat().st_size < 150_000
        assert f"(../images/performance_{axis}.png)" in text
    assert "GPU: not measured" in text
    assert "bfloat16, training step, batch 8 | MiB" in text


def test_one_part_alone(tool: ModuleType, capsys: pytest.CaptureFixture) -> None:
    command = ["--quick", "--runs", "1", "--threads", "1", "--part", "evaluator"]
    result, curves = tool.measure(tool.parse_args(command))
    assert {row["part"] for row in result["rows"]} == {"evaluator"} and not curves


def test_a_part_without_mmseg(
    tool: ModuleType, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mmcv", None)
    command = ["--quick", "--runs", "1", "--threads", "1", "--part", "loading"]
    tool.main(tool.parse_args(command))
    assert re.search(r"80x60: mmsegmentation's pipeline +not measured", capsys.readouterr().out)


def test_the_reference_gives_the_labels_of_the_model(workload: Workload) -> None:
    model, item = workload.model.eval(), workload.item()
    expected = released_labels(model, item["image"], workload.scale.photo)
    assert len(expected.unique()) > 1
    found = model([item])[0]["sem_seg_labels"]
    # Rounding may decide between classes that are equal at a pixel.
    assert (found != expected).sum() <= 2


def test_both_sides_of_a_curve_fuse_the_same_logits(workload: Workload) -> None:
    fusion = workload.fusion(workload.scale.classes, (64, 96))
    found = fusion.labels((48, 60))["sem_seg_labels"]
    (view,) = fusion.views
    logits = torch.cat([view.class_logits, view.trusty_logits], dim=1).split(1)
    expected = released_fusion(
        logits, view.grid, view.padded_size, fusion.seen_mask, torch.sigmoid, (48, 60)
    )
    assert len(expected.unique()) > 1
    assert (found != expected).sum() <= 2


def test_the_reference_has_the_losses_of_the_model(workload: Workload) -> None:
    head, batch = workload.model.sem_seg_head, workload.training_batch(2)
    _, targets = workload.targets(batch)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, workload.scale.seen, 4, 4, generator=generator).requires_grad_()
    trusty = torch.randn(2, 1, 4, 4, generator=generator).requires_grad_()
    found = head.loss(logits, trusty, targets)
    expected = released_losses(head.loss, logits, trusty, targets)
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)
    mine = torch.autograd.grad(sum(found.values()), [logits, trusty])
    plain = torch.autograd.grad(sum(expected.values()), [logits, trusty])
    torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-7)


def test_the_reference_counts_like_the_evaluator() -> None:
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(rng.random((5, 8, 9)))
    truth = rng.choice([0, 1, 2, 3, 4, 255], (8, 9)).astype(np.uint8)
    found = released_confusion(scores, truth)
    expected = confusion_matrix(truth, scores.argmax(0).numpy(), 5)
    # Its rows are predictions.
    assert np.array_equal(found["matrix"].T[:5, :5], expected)
    assert len(found["masks"]) == len(scores.argmax(0).unique())


def test_functions_take_turns() -> None:
    calls = []
    times = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert "".join(calls) == "ab" * 4
    assert [len(timing.runs) for timing in times.values()] == [3, 3]


def test_ratios_are_of_neighbours() -> None:
    assert Timing((2.0, 40.0, 3.0)).over(Timing((1.0, 10.0, 3.0))) == 2.0


class Worker:
    """Two methods of known order, one inside the other."""

    def outer(self) -> int:
        return self.inner() + 1

    def inner(self) -> int:
        return 1


def test_a_stopwatch_splits_a_call_and_leaves_no_trace() -> None:
    worker, watch, clock = Worker(), Stopwatch(), iter(range(100))
    watch.now = lambda: float(next(clock))
    backward = torch.Tensor.backward
    with watch.watch(worker, "inner", "inside"), watch.watch(torch.Tensor, "backward", "backward"):
        for _ in range(3):
            watch.run(worker.outer, "rest")
        assert torch.Tensor.backward is not backward
    # One tick for each look at the clock: four per run, of which two enclose `inner`.
    assert watch.stages == {"inside": [1.0] * 3, "rest": [2.0] * 3}
    assert len(watch.timings()["rest"].runs) == 2
    assert "inner" not in vars(worker) and torch.Tensor.backward is backward


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_memory_growth_is_what_was_allocated() -> None:
    def call() -> None:
        torch.ones(64 * 2**18)

    # Twice: what the first call gave back does not hide the second.
    for _ in range(2):
        assert 60 < memory_growth(call) < 80


def gpu_result(**row: Any) -> dict[str, Any]:
    row = {"unit": "ms", "value": 7.25, "low": 7.0, "high": 8.0, "runs": 5} | row
    return {"machine": {"device": "cuda", "gpu": "a card"}, "rows": [row], "bars": []}


def test_results_of_both_devices_share_a_table(tool: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "gpu.json").write_text(
        json.dumps(gpu_result(part="throughput", name="bfloat16, batch 8"))
    )
    page = tmp_path / "P.md"
    command = ["--quick", "--runs", "1", "--threads", "1", "--part", "throughput"]
    merge = ["--merge", str(tmp_path / "gpu.json"), "--write", str(page)]
    tool.main(tool.parse_args([*command, *merge]))
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in page.read_text().splitlines()
        if line.startswith("| ")
    ]
    assert ["bfloat16, batch 8", "ms", "not measured", "7.25 (7-8)"] in rows
    (cpu,) = (row for row in rows if row[:2] == ["float32, batch 1", "ms"])
    assert cpu[2] != "not measured" and cpu[3] == "not measured"


def test_a_page_without_any_result() -> None:
    text = format_markdown(None, None, {})
    assert text.count("not measured") > 40 and "## Bars" not in text


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            ["--merge", "nothing.json", "--write", "P.md"],
            "--merge nothing.json: found no result of this tool",
        ),
        (
            ["--merge", "cpu.json", "--write", "P.md"],
            "--merge cpu.json: found a result of cpu, too, expected one of the other device",
        ),
        (["--weights", "nothing.pth"], "nothing.pth: no such checkpoint"),
        (["--write", "folder"], "--write folder: cannot be written"),
        (["--curves", "--images", "cpu.json"], "--images cpu.json: cannot be written"),
    ],
)
def test_mistakes_get_one_line_before_anything_is_measured(
    tool: ModuleType,
    command: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tool, "measure", lambda *_: pytest.fail("measured"))
    (tmp_path / "folder").mkdir()
    result = gpu_result(part="throughput", name="bfloat16, batch 8")
    result["machine"]["device"] = "cpu"
    (tmp_path / "cpu.json").write_text(json.dumps(result))
    with pytest.raises(TagCLIPError, match=message):
        tool.main(tool.parse_args(["--quick", *command]))


@pytest.mark.parametrize(
    "change",
    [
        {"rows": [{}]},
        {"rows": [{"part": "throughput"}]},
        {"rows": {"part": 1}},
        {"rows": [5]},
        {"rows": [None]},
        {"rows": None},
        {"machine": {"device": "tpu"}},
        {"machine": {"device": ["cuda"]}},
        {"machine": None},
    ],
    ids=str,
)
def test_a_result_of_another_form_is_refused_before_anything_is_measured(
    tool: ModuleType, change: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "measure", lambda *_: pytest.fail("measured"))
    path = tmp_path / "gpu.json"
    command = ["--quick", "--merge", str(path), "--write", str(tmp_path / "P.md")]
    result = gpu_result(part="throughput", name="bfloat16, batch 8") | change
    path.write_text(json.dumps(result))
    with pytest.raises(ConfigError) as caught:
        tool.main(tool.parse_args(command))
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"--merge {path}: found no result of this tool (")
    assert line.endswith("expected the last line that --json prints")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("buffering", [-1, 1])
def test_a_result_that_the_shell_leads_to_a_full_disk(
    tool: ModuleType, buffering: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Line by line, as with PYTHONUNBUFFERED, the table fails before the json."""
    result = gpu_result(part="throughput", name="bfloat16, batch 8")
    monkeypatch.setattr(tool, "measure", lambda _: (result, []))
    args = tool.parse_args(["--quick", "--part", "throughput", "--json"])
    # What is left in the buffer fails again as it is closed.
    with suppress(OSError), Path("/dev/full").open("w", buffering) as full:
        monkeypatch.setattr(sys, "stdout", full)
        said = exit_of(run_tool, tool.main, args)
    assert said == (
        "OSError: stdout, or a file that is open: cannot be read or written (No space left on "
        "device); free space, or mend its rights"
    )


@pytest.mark.parametrize(
    "words",
    [
        "--part labels vit labels",
        "--part labels --weights a.pth",
        "--part bulk --base .",
        "--images docs",
        "--curves --write P.md",
        "--merge gpu.json --json",
    ],
)
def test_what_does_nothing_is_refused(tool: ModuleType, words: str) -> None:
    assert exit_of(tool.parse_args, words.split()) == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_said(tool: ModuleType) -> None:
    with pytest.raises(ConfigError, match="--device: found no GPU"):
        tool.main(tool.parse_args(["--device", "cuda"]))
