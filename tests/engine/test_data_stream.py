"""The training stream is a function of (seed, position), whoever reads it and from where."""

from __future__ import annotations

import hashlib
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from helpers.tiny_run import changed, write_tiny_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from tagclip import Vocabulary, ZeroShotTrainer
from tagclip.analysis.gate_comparison import labelled_inputs
from tagclip.engine import StreamLoader
from tagclip.engine.data_stream import contents_sha256, files_sha256, seeded, seeded_step
from tagclip.errors import ConfigError, DatasetError
from tagclip.utils.cli import error_line


def noisy(sample: dict[str, Any]) -> dict[str, Any]:
    """A mapper that draws from every generator that an augmentation may use."""
    return {**sample, "noise": (random.random(), np.random.rand(), torch.rand(1).item())}


def stream(samples: int = 7, batch: int = 3, stop: int = 10, seed: int = 0, **more: Any):
    dicts = [{"id": index} for index in range(samples)]
    return StreamLoader(dicts, noisy, batch_size=batch, max_iter=stop, seed=seed, **more)


def flat(loader: StreamLoader) -> list[dict[str, Any]]:
    return [sample for batch in loader for sample in batch]


@given(samples=st.integers(1, 9), batch=st.integers(1, 12), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_every_epoch_is_a_permutation(samples: int, batch: int, seed: int) -> None:
    epochs = 3
    loader = stream(samples, batch, stop=-(-epochs * samples // batch), seed=seed)
    batches = list(loader)
    assert {len(each) for each in batches} == {batch}
    ids = [sample["id"] for each in batches for sample in each]
    for start in range(0, epochs * samples, samples):
        assert sorted(ids[start : start + samples]) == list(range(samples))


def test_order_and_augmentation_differ_between_epochs_and_seeds() -> None:
    first = flat(stream(samples=40, batch=40, stop=2))
    ids = [sample["id"] for sample in first]
    assert ids[:40] != ids[40:]
    assert ids[:40] != sorted(ids[:40])
    other = [sample["id"] for sample in flat(stream(samples=40, batch=40, stop=2, seed=1))]
    assert ids != other
    for kind in range(3):
        assert len({sample["noise"][kind] for sample in first}) == len(first)


def test_neither_reads_nor_changes_the_generators_of_the_process() -> None:
    expected = flat(stream())
    seeded_step(5, 0, 0)
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert flat(stream()) == expected
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert after == state


def test_generators_come_back_after_an_error() -> None:
    seeded_step(5, 0, 0)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    seeded_step(5, 0, 0)
    with pytest.raises(DatasetError), seeded(1, 2):
        noisy({})
        raise DatasetError("a.png")
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


def test_steps_differ_by_seed_rank_and_iteration() -> None:
    drawn = set()
    for step in [(0, 0, -1), (0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]:
        seeded_step(*step)
        drawn.add(torch.rand(1).item())
    assert len(drawn) == 5


@pytest.mark.parametrize("start", [1, 4, 10])
@pytest.mark.parametrize("workers", [0, 2])
def test_started_late_it_gives_the_tail(start: int, workers: int) -> None:
    late = stream(num_workers=workers)
    iterator = iter(late)
    # A trainer makes its iterator before it knows where it resumes.
    late.start_iter = start
    assert list(iterator) == list(stream())[start:]


def test_a_longer_stream_begins_with_the_shorter_one() -> None:
    assert list(stream(stop=12))[:10] == list(stream(stop=10))


def test_ranks_share_the_batch_of_one_process() -> None:
    alone = list(stream(batch=4))
    ranks = [list(stream(batch=4, rank=rank, world_size=2)) for rank in range(2)]
    assert [a + b for a, b in zip(*ranks, strict=True)] == alone


def test_travels_to_another_process() -> None:
    loader = stream()
    expected = list(loader)
    assert list(pickle.loads(pickle.dumps(loader))) == expected


def bits(loader: StreamLoader) -> list[tuple]:
    return [
        (item["file_name"], item["image"].numpy().tobytes(), item["sem_seg"].numpy().tobytes())
        for item in flat(loader)
    ]


def test_workers_give_the_same_augmented_batches(tiny_cfg: CfgNode, tmp_path: Path) -> None:
    write_tiny_dataset(tmp_path)
    options = ["SOLVER.IMS_PER_BATCH", 4, "SOLVER.MAX_ITER", 5, "INPUT.COLOR_AUG_SSD", True]
    cfg = changed(tiny_cfg, *options)
    alone = bits(ZeroShotTrainer.build_train_loader(cfg))
    with_workers = changed(cfg, "DATALOADER.NUM_WORKERS", 2)
    assert bits(ZeroShotTrainer.build_train_loader(with_workers)) == alone
    # Six images, twenty positions: the augmentation is a random one.
    assert len({name for name, _, _ in alone}) == 6
    assert len({image for _, image, _ in alone}) > 15


def test_the_files_of_a_training_are_known_by_their_names_and_order(
    tiny_cfg: CfgNode, tmp_path: Path
) -> None:
    write_tiny_dataset(tmp_path, train=3)
    trainer = ZeroShotTrainer(changed(tiny_cfg, "OUTPUT_DIR", str(tmp_path / "run")))
    samples = DatasetCatalog.get(tiny_cfg.DATASETS.TRAIN[0])
    found = trainer.checkpointer.metadata["training_files"]
    assert found == files_sha256(samples)
    names = [
        Path(sample[key]).name for sample in samples for key in ("file_name", "sem_seg_file_name")
    ]
    assert found == hashlib.sha256("".join(f"{name}\0" for name in names).encode()).hexdigest()
    elsewhere = [
        {**sample, "file_name": f"/other/{Path(sample['file_name']).name}"} for sample in samples
    ]
    assert files_sha256(elsewhere) == found
    for others in (
        samples[:-1],
        samples[::-1],
        [samples[0] | {"file_name": "x.png"}, *samples[1:]],
        [samples[0] | {"sem_seg_file_name": "x.png"}, *samples[1:]],
    ):
        assert files_sha256(others) != found


def test_the_contents_of_a_training_are_its_labels_and_sizes_of_images(
    tiny_cfg: CfgNode, tmp_path: Path
) -> None:
    write_tiny_dataset(tmp_path, train=3)
    samples = DatasetCatalog.get(tiny_cfg.DATASETS.TRAIN[0])
    found = contents_sha256(samples)
    image, label = (Path(samples[1][key]) for key in ("file_name", "sem_seg_file_name"))
    # A copy has another time.
    os.utime(label, ns=(1, 1))
    assert contents_sha256(samples) == found
    assert contents_sha256(samples[::-1]) != found
    before = label.read_bytes()
    label.write_bytes(before[:-1] + b"x")
    assert contents_sha256(samples) != found
    label.write_bytes(before)
    assert contents_sha256(samples) == found
    image.write_bytes(image.read_bytes() + b"x")
    assert contents_sha256(samples) != found
    # Whoever reads what is missing says so.
    label.unlink()
    assert contents_sha256([*samples, {"file_name": "none"}]) != found


def test_an_error_in_a_worker_names_the_file(tiny_cfg: CfgNode, tmp_path: Path) -> None:
    write_tiny_dataset(tmp_path, train=2)
    broken = tmp_path / "images" / "train" / "1.png"
    broken.write_bytes(broken.read_bytes()[:200])
    cfg = changed(tiny_cfg, "SOLVER.MAX_ITER", 2, "DATALOADER.NUM_WORKERS", 2)
    with pytest.raises(DatasetError) as caught:
        list(ZeroShotTrainer.build_train_loader(cfg))
    line = error_line(caught.value)
    assert line.startswith(f"DatasetError: {broken}: cannot decode this image")
    assert "\n" not in line and "Traceback" not in line


def with_tensors(sample: dict[str, Any]) -> dict[str, Any]:
    return sample | {"image": torch.full((3, 4), sample["id"]), "name": "a"}


def full(tensor: torch.Tensor) -> None:
    raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")


def test_tensors_of_a_loader_process_come_in_shared_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Put there by the process itself: where torch does so later, a full one loses the batch."""
    dicts = [{"id": index} for index in range(3)]
    for workers in (0, 2):
        loader = StreamLoader(
            dicts, with_tensors, batch_size=3, max_iter=2, seed=0, num_workers=workers
        )
        samples = flat(loader)
        assert [sample["image"].unique().item() for sample in samples] == [
            sample["id"] for sample in samples
        ]
        assert {sample["image"].is_shared() for sample in samples} == {workers > 0}
    # The processes are forked.
    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with pytest.raises(ConfigError) as caught:
        flat(loader)
    line = error_line(caught.value)
    assert line.startswith(
        "ConfigError: DATALOADER.NUM_WORKERS: found 2, which hand on batches in shared memory, and "
        "no room there (/dev/shm) for 96 bytes more"
    )
    assert "lower DATALOADER.NUM_WORKERS: 0 needs none" in line and "\n" not in line


TWO_PROCESSES = """
from tagclip.engine.data_stream import StreamLoader
from tagclip.utils.cli import error_line
import torch

loader = StreamLoader(
    [{"id": 0}],
    lambda sample: sample | {"image": torch.zeros(3)},
    batch_size=1,
    max_iter=3,
    seed=0,
    num_workers=2,
)
try:
    print(len(list(loader)))
except Exception as error:
    print(error_line(error))
"""


def test_loader_processes_without_a_place_for_sockets_end_the_run(tmp_path: Path) -> None:
    """torch makes them in a thread, whose batch does not come then."""
    place = tmp_path / ("a" * 100)
    place.mkdir()
    ended = subprocess.run(
        [sys.executable, "-c", TWO_PROCESSES], env={**os.environ, "TMPDIR": str(place)},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert ended.stdout == (
        f"ConfigError: TMPDIR: found {place}, where no socket can be made (AF_UNIX path too long), "
        "expected a folder with a shorter path and room for some, by which loader processes hand "
        "on batches; set TMPDIR=/tmp, or another, or DATALOADER.NUM_WORKERS 0 (needs none)\n"
    )


def test_an_evaluation_without_room_in_shared_memory_ends(
    tiny_cfg: CfgNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_dataset(tmp_path)
    cfg = changed(tiny_cfg, "DATALOADER.NUM_WORKERS", 2)
    (name,) = cfg.DATASETS.TEST
    (first, *_), *_ = ZeroShotTrainer.build_test_loader(cfg, name)
    assert first["image"].is_shared()
    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    for loader in (
        ZeroShotTrainer.build_test_loader(cfg, name),
        labelled_inputs(cfg, name, Vocabulary.from_metadata(name)),
    ):
        with pytest.raises(ConfigError, match="DATALOADER.NUM_WORKERS: found 2"):
            list(loader)


def test_batch_and_dataset_must_not_be_empty(tiny_cfg: CfgNode, tmp_path: Path) -> None:
    write_tiny_dataset(tmp_path, train=1)
    with pytest.raises(ConfigError, match="IMS_PER_BATCH: found 0, expected a whole number from 1"):
        ZeroShotTrainer.build_train_loader(changed(tiny_cfg, "SOLVER.IMS_PER_BATCH", 0))
    (name,) = tiny_cfg.DATASETS.TRAIN
    DatasetCatalog.remove(name)
    DatasetCatalog.register(name, list)
    with pytest.raises(DatasetError, match=rf"{name}: found 0 images, expected some"):
        ZeroShotTrainer.build_train_loader(tiny_cfg)
