"""tagclip/bulk/ray_engine.py: two nodes write the bytes of one process; what dies is done again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from detectron2.config import CfgNode
from helpers.bulk import WORDS, content_of, make_options, write_images, write_tar
from helpers.paths import REPOSITORY
from helpers.tiny_checkpoint import save_tiny
from pyarrow import parquet

from tagclip.bulk.inputs import find_inputs
from tagclip.bulk.local import run_local
from tagclip.bulk.manifest import BulkFolder
from tagclip.bulk.shards import ShardResult
from tagclip.bulk.worker import BulkOptions

ray = pytest.importorskip("ray", reason="no ray: pip install -r requirements-bulk.txt")

from ray.cluster_utils import Cluster  # noqa: E402

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


def start(options: BulkOptions, address: str, *program: object) -> tuple[int, str]:
    """`tagclip bulk` in a process of its own, as `run` would be; returns exit code and output."""
    words = [
        options.output.parent / "in", "--output", options.output, "--labels", "--engine", "ray",
        "--weights", options.cfg.MODEL.WEIGHTS, "--vocab", ", ".join(WORDS), "--shard-size", SIZE,
        "MODEL.DEVICE", "cpu",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", *map(str, [*program, *words])],
        env={
            **os.environ,
            "RAY_ADDRESS": address,
            "PYTHONPATH": os.pathsep.join(map(str, (REPOSITORY, REPOSITORY / "tests"))),
        },
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
    code, text = start(whole, cluster.address, "tagclip", "bulk")
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
