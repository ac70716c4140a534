"""tagclip/bulk/ray_engine.py: two nodes write the bytes of one process; what dies is done again."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from detectron2.config import CfgNode
from helpers.bulk import WORDS, content_of, make_options, write_images, write_tar
from helpers.deadly import DeadlyConfig, DeadlyPreparer
from helpers.paths import REPOSITORY
from helpers.tiny_checkpoint import save_tiny
from helpers.tiny_run import changed
from pyarrow import parquet

from tagclip.bulk.inputs import find_inputs
from tagclip.bulk.local import run_local
from tagclip.bulk.manifest import BulkFolder
from tagclip.bulk.shards import ShardResult
from tagclip.bulk.worker import BulkOptions
from tagclip.data.prepared_image import ImagePreparer
from tagclip.errors import CheckpointError, ConfigError, ProcessError

ray = pytest.importorskip("ray", reason="no ray: pip install -r requirements-bulk.txt")

from ray.cluster_utils import Cluster  # noqa: E402

from tagclip.bulk import ray_engine  # noqa: E402
from tagclip.bulk.ray_engine import run_ray  # noqa: E402

pytestmark = pytest.mark.slow

# A part of a shard is 16 images at most: those of the tar come in two.
FILES, TAR, TABLE, SIZE = 13, 18, 4, 5
IMAGES = FILES + TAR + TABLE
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
QUIET = {"logging_level": "error", "log_to_driver": False}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes of this machine; this process is connected."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        cluster.add_node(**NODE)
        ray.init(address=cluster.address, **QUIET)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def options(tiny_cfg: CfgNode, tmp_path: Path) -> BulkOptions:
    """Of a run on files, a tar and a parquet file; some images are broken."""
    source = tmp_path / "in"
    paths = write_images(source, FILES)
    paths[3].write_bytes(b"hello")
    more = [path.read_bytes() for path in write_images(tmp_path / "more", TAR, seed=1)]
    write_tar(source / "t.tar", [(f"{number}.png", more[number]) for number in range(TAR)])
    table = pa.table({"image": [*more[: TABLE - 1], b"hello"]})
    parquet.write_table(table, source / "t.parquet")
    return make_options(save_tiny(tiny_cfg, tmp_path / "model"), tmp_path / "out", labels=True)


Report = Callable[[int], None]


def run(
    options: BulkOptions,
    actors: int | None = 2,
    report: Report = lambda count: None,
    engine: str = "ray",
    device: str = "cpu",
) -> Iterator[ShardResult]:
    """Do what is missing."""
    folder = BulkFolder(options.output, options.settings)
    source = options.output.parent / "in"
    folder.plan(find_inputs([str(source)], options.output), [], options.asked.shown, SIZE)
    left = [shard for shard in folder.shards if not folder.finished(shard)]
    if engine == "ray":
        yield from run_ray(left, options, device, actors, report)
    else:
        yield from run_local(left, options, [device] * actors, report)


def undisturbed(options: BulkOptions) -> dict[str, bytes]:
    """What one local process writes."""
    other = replace(options, output=options.output.with_name("undisturbed"))
    assert sum(result.images for result in run(other, 1, engine="local")) == IMAGES
    return content_of(other.output)


def assert_whole(options: BulkOptions, expected: dict[str, bytes]) -> None:
    """All is there, and nothing else."""
    assert content_of(options.output) == expected
    assert sorted(path.name for path in options.output.iterdir()) == [
        "manifest.json", "segments", "shards", "vocabulary.json"
    ]  # fmt: skip


def actor_processes() -> list[int]:
    """Those of this process's clusters that have a model, or will."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name = (folder / "cmdline").read_bytes()
            if name.startswith(b"ray::") and b"MapWorker" in name and _is_ours(int(folder.name)):
                found.append(int(folder.name))
        except (OSError, IndexError):
            # It has just ended.
            continue
    return sorted(found)


def _is_ours(pid: int) -> bool:
    while pid > 1 and pid != os.getpid():
        # "PID (NAME) STATE PARENT ..."
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pid == os.getpid()


def at_moment(seed: int, act: Callable[[], Any]) -> tuple[Report, list[int]]:
    """A report that acts once a number of images, which the seed draws, is there."""
    moment, counts, acted = random.Random(seed).randint(1, IMAGES * 2 // 3), [], []

    def report(count: int) -> None:
        counts.append(count)
        if sum(counts) >= moment and not acted:
            acted.append(moment)
            act()

    return report, acted


@pytest.mark.parametrize("form", ["parquet", "webdataset"])
def test_a_cluster_writes_the_bytes_of_local_processes(
    cluster: Cluster, options: BulkOptions, form: str
) -> None:
    options = replace(options, settings=replace(options.settings, format=form))
    expected = undisturbed(options)
    two = replace(options, output=options.output.with_name("two"))
    results = sorted(run(two, 2, engine="local"))
    assert content_of(two.output) == expected
    counts: list[int] = []
    # More than there are CPUs: the others stay away.
    assert sorted(run(options, 5, counts.append)) == results
    assert [result.images for result in results] == [5, 5, 3, TABLE, TAR]
    assert [result.failed for result in results] == [1, 0, 0, 1, 0]
    assert sum(counts) == IMAGES
    assert_whole(options, expected)
    assert ray.is_initialized()
    assert list(run(options)) == []


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_actor_changes_nothing(cluster: Cluster, options: BulkOptions, seed: int) -> None:
    expected = undisturbed(options)
    killed: list[int] = []

    def kill() -> None:
        killed.append(random.Random(seed).choice(actor_processes()))
        os.kill(killed[0], signal.SIGKILL)

    report, _ = at_moment(seed, kill)
    assert sum(result.images for result in run(options, 2, report)) == IMAGES
    assert killed
    assert_whole(options, expected)


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_node_changes_nothing(cluster: Cluster, options: BulkOptions, seed: int) -> None:
    expected = undisturbed(options)
    cluster.wait_for_nodes()
    node = max(cluster.worker_nodes, key=lambda node: node.node_id)
    report, killed = at_moment(seed, lambda: cluster.remove_node(node, allow_graceful=False))
    try:
        assert sum(result.images for result in run(options, 2, report)) == IMAGES
    finally:
        cluster.add_node(**NODE)
    assert killed
    assert_whole(options, expected)


def start(
    options: BulkOptions, address: str, *program: object, engine: str = "ray"
) -> tuple[int, str]:
    """`tagclip bulk` in a process of its own, as `run` would be; returns exit code and output."""
    words = [
        options.output.parent / "in", "--output", options.output, "--labels", "--engine", engine,
        "--weights", options.cfg.MODEL.WEIGHTS, "--vocab", ", ".join(WORDS), "--shard-size", SIZE,
        "MODEL.DEVICE", "cpu",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", *map(str, [*program, *words])],
        env={**os.environ, "RAY_ADDRESS": address},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("seed", range(3))
def test_after_a_killed_driver_a_second_run_does_the_rest(
    cluster: Cluster, options: BulkOptions, seed: int
) -> None:
    whole = replace(options, output=options.output.with_name("whole"))
    code, text = start(whole, "", "tagclip", "bulk", engine="local")
    # Two images are broken.
    assert code == 1 and f"2 of {IMAGES} images failed" in text
    moment = random.Random(seed).randint(1, IMAGES)
    code, _ = start(options, cluster.address, "helpers.killed_bulk", moment)
    assert code == -signal.SIGKILL
    assert list(options.output.glob(".parts.*.tmp"))
    files = list(options.output.glob("segments/shard-*"))
    times = [path.stat().st_mtime_ns for path in files]
    code, text = start(options, cluster.address, "tagclip", "bulk")
    assert code == 1 and f"2 of {IMAGES} images failed" in text
    assert [path.stat().st_mtime_ns for path in files] == times
    assert {**content_of(options.output), ".lock": b""} == {
        **content_of(whole.output), ".lock": b""
    }  # fmt: skip


def test_a_damaged_tar_fails_alone(cluster: Cluster, options: BulkOptions) -> None:
    path = options.output.parent / "in" / "t.tar"
    path.write_bytes(path.read_bytes()[:-30000])
    code, text = start(options, cluster.address, "tagclip", "bulk")
    assert code == 1
    *_, title, line = text.splitlines()
    assert title == "1 of 5 shards failed:"
    assert line.startswith(f"  shard-000004: {path}: damaged tar file, at ")
    shards = sorted(file.stem for file in options.output.glob("segments/*"))
    assert shards == [f"shard-{number:06}" for number in range(4)]
    # Nothing of Ray's: a date, a level, a traceback.
    ours = re.compile(r"(WARNING )?\[\S+ \S+ tagclip\.|\d of \d+ (images|shards) failed:|  \w")
    assert [line for line in text.splitlines() if not ours.match(line)] == []


def test_weights_that_a_node_has_not(cluster: Cluster, options: BulkOptions) -> None:
    cfg = changed(options.cfg, "MODEL.WEIGHTS", "/missing/model.pth")
    with pytest.raises(CheckpointError, match="^[^\n]*/missing/model.pth[^\n]*$"):
        list(run(replace(options, cfg=cfg)))
    assert not list(options.output.glob(".*"))


def test_an_output_that_an_actor_cannot_write(cluster: Cluster, options: BulkOptions) -> None:
    next(run(options))
    (options.output / "segments" / "shard-000001.parquet").unlink(missing_ok=True)
    (options.output / "segments" / "shard-000001.parquet").mkdir()
    with pytest.raises(ConfigError, match="^--output [^\n]*: cannot be written [^\n]*$"):
        list(run(options))
    assert not list(options.output.glob(".*"))


def test_a_shard_that_ends_processes_is_given_up(
    cluster: Cluster, options: BulkOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadly = DeadlyPreparer(ImagePreparer.from_config(options.cfg), "t.parquet/2")
    monkeypatch.setattr(ImagePreparer, "from_config", lambda cfg: deadly)
    results = {result.name: result for result in run(options)}
    assert results.pop("shard-000003").error.startswith("shard-000003: it has ended 5 processes, ")
    assert sorted(result.images for result in results.values()) == [3, 5, 5, TAR]
    monkeypatch.undo()
    assert [result.images for result in run(options)] == [TABLE]


def test_processes_that_end_before_they_have_a_model(
    cluster: Cluster, options: BulkOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = ImagePreparer.from_config(options.cfg)
    monkeypatch.setattr(ImagePreparer, "from_config", lambda cfg: prepare)
    with pytest.raises(
        ProcessError, match="^--engine ray: the model has ended 5 processes, [^\n]*$"
    ):
        list(run(replace(options, cfg=DeadlyConfig())))


def test_nobody_listens(options: BulkOptions) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, text = start(options, address, "tagclip", "bulk")
    assert code == 1
    assert text.splitlines()[-1].startswith(
        f"ProcessError: RAY_ADDRESS {address}: no cluster can be reached ("
    )


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_reading_is_a_step_of_its_own_where_there_are_gpus(
    cluster: Cluster, options: BulkOptions, device: str
) -> None:
    """Ray believes in a GPU that there is not; the model takes the CPU."""
    if torch.cuda.is_available():
        pytest.skip("the actor would find the GPU that Ray only believes in")
    node = cluster.add_node(**NODE, num_gpus=1)
    try:
        folder = BulkFolder(options.output, options.settings)
        files = find_inputs([str(options.output.parent / "in")], options.output)
        folder.plan(files, [], options.asked.shown, SIZE)
        with ray_engine._parts(options.output) as parts:
            job = ray_engine._Job(options, parts)
            rows = ray_engine._dataset(ray, folder.shards, job, device, None).materialize()
            assert sum(row["images"] for row in rows.take_all()) == IMAGES
    finally:
        cluster.remove_node(node)
    names = [line for line in rows.stats().splitlines() if line.startswith("Operator")]
    assert any("_read)->MapBatches(_Model)" in name for name in names) == (device == "cpu")
    assert any(name.split()[2].rstrip(":") == "MapBatches(_Model)" for name in names) == (
        device == "cuda"
    )
