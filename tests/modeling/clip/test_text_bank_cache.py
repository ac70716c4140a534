"""TextBank's caches: what is reused, what is encoded anew, what a failure leaves."""

from __future__ import annotations

import gzip
import json
import logging
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.clip_files import class_list, fails, random_clip, tiny_config, write_json
from open_clip import tokenizer
from open_clip.model import CLIP

from tagclip import TextBank, Vocabulary
from tagclip.errors import CheckpointError
from tagclip.modeling.clip import CLIPSource
from tagclip.modeling.clip.text_bank import _checksum

TEMPLATES = ("a photo of a {}.", "{} in the scene", "the very large {}")


@pytest.fixture(scope="module")
def clip() -> CLIP:
    return random_clip()


@pytest.fixture(scope="module")
def model_files(clip: CLIP, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Paths of a model json and of its weights."""
    folder = tmp_path_factory.mktemp("clip")
    torch.save(clip.state_dict(), folder / "clip.pt")
    return str(write_json(folder / "model.json", tiny_config())), str(folder / "clip.pt")


@pytest.fixture
def source(model_files: tuple[str, str]) -> CLIPSource:
    return CLIPSource(*model_files)


def no_tower() -> None:
    pytest.fail("the text tower is built")


def test_memory_holds_what_was_encoded(source: CLIPSource) -> None:
    bank = TextBank(source=source, templates=TEMPLATES)
    first = bank(class_list(["cat"], ["sky"]))
    source.text_tower = no_tower
    assert torch.equal(bank(class_list(["cat"], ["sky"])), first)
    assert bank.num_text_forwards == 1


def test_a_cached_vocabulary_needs_no_text_tower(
    model_files: tuple[str, str], tmp_path: Path
) -> None:
    cache = tmp_path / "new" / "cache"
    options: dict[str, Any] = {"templates": TEMPLATES, "cache_dir": str(cache)}
    first = TextBank(source=CLIPSource(*model_files), **options)(class_list(["cat"], ["sky"]))
    source = CLIPSource(*model_files)
    source.text_tower = no_tower
    bank = TextBank(source=source, **options)
    assert torch.equal(bank(class_list(["cat"], ["sky"])), first)
    assert bank.num_text_forwards == 0
    assert [path.suffix for path in cache.iterdir()] == [".npz"], "temporary files are left"
    del source.text_tower
    bank(class_list(["cat"], ["cow"]))
    assert bank.num_text_forwards == 1
    assert len(list(cache.iterdir())) == 2


def damage(path: Path, how: str) -> None:
    vectors = np.load(path)["vectors"]
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-30])
    elif how == "flipped":
        content = bytearray(path.read_bytes())
        content[200] ^= 255
        path.write_bytes(content)
    elif how == "deflated":
        np.savez_compressed(path, vectors=vectors)
        content = bytearray(path.read_bytes())
        start = content.index(b"vectors.npy") + 31
        content[start : start + 40] = b"\xff" * 40
        path.write_bytes(content)
    elif how == "header":
        # More vectors than a zip file unpacks at once: its checksum comes behind the parser.
        np.savez(path, vectors=np.zeros((100, 32), np.float32))
        content = bytearray(path.read_bytes())
        content[content.index(b"NUMPY") + 7] = 12
        path.write_bytes(content)
    elif how == "lzma":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as file:
            file.writestr("vectors.npy", bytes(100))
        content = bytearray(path.read_bytes())
        start = content.index(b"vectors.npy") + len(b"vectors.npy")
        content[start + 4 : start + 9] = b"\xff" * 5
        path.write_bytes(content)
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "name":
        np.savez(path, other=vectors)
    elif how == "no checksum":
        np.savez(path, vectors=vectors)
    elif how == "pickle":
        np.savez(path, vectors=np.array([{"a": 1}], dtype=object))
    else:
        # With the old checksum and with one that suits the content: neither is taken.
        changed, sealed = CONTENTS[how.removesuffix(", sealed")](vectors), "sealed" in how
        checksum = _checksum(path.stem, changed) if sealed else np.load(path)["sha256"]
        np.savez(path, vectors=changed, sha256=checksum)


# Arrays that a right header may stand before.
CONTENTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "zeros": np.zeros_like,
    "nan": lambda vectors: np.full_like(vectors, np.nan),
    "infinite": lambda vectors: np.full_like(vectors, np.inf),
    "twice as long": lambda vectors: 2 * vectors,
    "a little short": lambda vectors: vectors * np.float32(0.999),
    "rows": lambda vectors: vectors[:1],
    "columns": lambda vectors: vectors[:, :-1],
    "flat": np.ravel,
    "double": lambda vectors: vectors.astype(np.float64),
    "half": lambda vectors: vectors.astype(np.float16),
    "other end first": lambda vectors: vectors.astype(">f4"),
    "complex": lambda vectors: vectors.astype(np.complex64),
}
# Unit vectors of the right size, but not those of these classes: the checksum alone tells.
UNIT = {
    "rows in another order": lambda vectors: vectors[::-1],
    "columns in another order": lambda vectors: vectors[:, ::-1],
    "opposite": np.negative,
}
CONTENTS |= UNIT


@pytest.mark.parametrize(
    "how",
    [
        "truncated",
        "flipped",
        "deflated",
        "header",
        "lzma",
        "empty",
        "name",
        "no checksum",
        "pickle",
        *CONTENTS,
    ]
    + [f"{how}, sealed" for how in CONTENTS if how not in UNIT],
)
def test_a_damaged_cache_file_is_replaced(
    how: str, model_files: tuple[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {"templates": TEMPLATES, "cache_dir": str(tmp_path)}
    classes = class_list(["cat"], ["sky"])
    first = TextBank(source=CLIPSource(*model_files), **options)(classes)
    (path,) = tmp_path.iterdir()
    damage(path, how)
    bank = TextBank(source=CLIPSource(*model_files), **options)
    with caplog.at_level(logging.WARNING, logger="tagclip"):
        assert torch.equal(bank(classes), first)
    assert bank.num_text_forwards == 1
    (record,) = caplog.records
    assert str(path) in record.getMessage() and "damaged" in record.getMessage()
    assert list(tmp_path.iterdir()) == [path]
    assert np.array_equal(np.load(path)["vectors"], first.numpy())


def test_a_file_under_the_name_of_another_is_replaced(
    model_files: tuple[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is whole, of the right size, and of other words."""
    options: dict[str, Any] = {"templates": TEMPLATES, "cache_dir": str(tmp_path)}
    bank = TextBank(source=CLIPSource(*model_files), **options)
    first, second = class_list(["cat"], ["sky"]), class_list(["cow"], ["sky"])
    expected, other = (tmp_path / f"{bank.fingerprint(words)}.npz" for words in (first, second))
    vectors = bank(first)
    bank(second)
    expected.write_bytes(other.read_bytes())
    bank = TextBank(source=CLIPSource(*model_files), **options)
    assert torch.equal(bank(first), vectors)
    (record,) = caplog.records
    assert str(expected) in record.getMessage() and "checksum" in record.getMessage()


def test_a_cache_that_cannot_be_written_only_warns(
    source: CLIPSource, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    cache = tmp_path / "file" / "cache"
    bank = TextBank(source=source, templates=TEMPLATES, cache_dir=str(cache))
    with caplog.at_level(logging.WARNING, logger="tagclip"):
        assert bank(class_list(["cat"])).shape == (1, 32)
    assert "MODEL.CLIP.TEXT_CACHE" in caplog.text and str(cache) in caplog.text


@pytest.mark.parametrize("name", ["a\0b", "a" * 5000, "a" * 300 + "/b"])
def test_a_cache_that_no_file_system_can_have_only_warns(
    name: str, source: CLIPSource, caplog: pytest.LogCaptureFixture
) -> None:
    bank = TextBank(source=source, templates=TEMPLATES, cache_dir=name)
    with caplog.at_level(logging.WARNING, logger="tagclip"):
        assert bank(class_list(["cat"])).shape == (1, 32)
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith("MODEL.CLIP.TEXT_CACHE") and message.isprintable()
    assert len(message) < 1500


@pytest.mark.parametrize(("value", "length"), [(1e-30, "length 0"), (3e38, "length inf")])
def test_a_text_tower_without_directions_is_named_and_nothing_is_cached(
    value: float, length: str, model_files: tuple[str, str], tmp_path: Path
) -> None:
    weights, cache = tmp_path / "clip.pt", tmp_path / "cache"
    projection = torch.eye(32) * value
    torch.save(torch.load(model_files[1]) | {"text_projection": projection}, weights)
    source = CLIPSource(model_files[0], str(weights))
    bank = TextBank(source=source, templates=TEMPLATES, cache_dir=str(cache))
    parts = (weights, "MODEL.CLIP.PRETRAINED", "'a photo of a cat.'", length)
    fails(CheckpointError, lambda: bank(class_list(["cat"])), *parts)
    assert not cache.exists()


@pytest.mark.parametrize("names", [["cat"], ["dog"]], ids=["known before", "new"])
def test_weights_that_are_replaced_meanwhile_are_refused_and_not_cached(
    names: list[str], model_files: tuple[str, str], tmp_path: Path
) -> None:
    """Their vectors would lie under the key of the first ones, for every run to come."""
    weights, other, cache = tmp_path / "clip.pt", tmp_path / "other.pt", tmp_path / "cache"
    weights.write_bytes(Path(model_files[1]).read_bytes())
    times = weights.stat().st_mtime_ns
    source = CLIPSource(model_files[0], str(weights))
    bank = TextBank(source=source, templates=TEMPLATES, cache_dir=str(cache))
    bank.fingerprint(class_list(["cat"]))
    torch.save(random_clip(seed=1).state_dict(), other)
    # As a copy that keeps the time.
    os.utime(other, ns=(times, times))
    other.replace(weights)
    for read in (lambda: bank(class_list(names)), source.vision_state):
        parts = (weights, "found other CLIP weights than at the start", source.sha256)
        fails(CheckpointError, read, *parts)
    assert not cache.exists()
    # They are welcome to whoever begins with them.
    assert CLIPSource(model_files[0], str(weights)).vision_state()


def test_merges_that_are_replaced_meanwhile_change_nothing(
    clip: CLIP, model_files: tuple[str, str], tmp_path: Path
) -> None:
    """The key of a vocabulary is that of the tokenizer that has read it."""
    merges = tmp_path / "merges.txt.gz"
    merges.write_bytes(Path(tokenizer.default_bpe()).read_bytes())
    config = tiny_config()
    config["text_cfg"]["tokenizer_kwargs"] = {"bpe_path": merges.name}
    source = CLIPSource(str(write_json(tmp_path / "model.json", config)), model_files[1])
    bank = TextBank(source=source, templates=TEMPLATES)
    before = bank.fingerprint(class_list(["cat"]))
    merges.write_bytes(gzip.compress(gzip.decompress(merges.read_bytes()) + b"c at</w>\n"))
    assert bank.fingerprint(class_list(["cat"])) == before


def test_a_failed_write_leaves_nothing(
    source: CLIPSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    bank = TextBank(source=source, templates=TEMPLATES, cache_dir=str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        bank(class_list(["cat"]))
    assert not list(tmp_path.iterdir())


def test_the_fingerprint_changes_with_everything_that_matters(
    model_files: tuple[str, str], tmp_path: Path
) -> None:
    json_path, weights = model_files
    other_weights = tmp_path / "other.pt"
    torch.save(random_clip(seed=1).state_dict(), other_weights)
    other_json = str(write_json(tmp_path / "model.json", tiny_config(quick_gelu=False)))
    copy = tmp_path / "copy.pt"
    copy.write_bytes(Path(weights).read_bytes())
    classes = class_list(["cat", "kitten"], ["sky"])

    def fingerprint(
        classes: Vocabulary = classes,
        model: str = json_path,
        weights: str | Path = weights,
        templates: tuple[str, ...] = TEMPLATES,
        **options: Any,
    ) -> str:
        bank = TextBank(source=CLIPSource(model, str(weights)), templates=templates, **options)
        return bank.fingerprint(classes)

    same = [
        fingerprint(),
        fingerprint(weights=copy),
        fingerprint(batch_size=1, cache_dir=str(tmp_path)),
        fingerprint(Vocabulary("other name", classes.classes, seen=(True, False))),
    ]
    assert len(set(same)) == 1
    different = [
        fingerprint(weights=other_weights),
        fingerprint(model=other_json),
        fingerprint(templates=TEMPLATES[:2]),
        fingerprint(templates=TEMPLATES[::-1]),
        fingerprint(class_list(["cat"], ["sky"])),
        fingerprint(class_list(["cat", "kitten"], ["Sky"])),
        fingerprint(class_list(["sky"], ["cat", "kitten"])),
    ]
    assert len({same[0], *different}) == 8


def test_the_bank_holds_no_parameters_and_no_state(source: CLIPSource) -> None:
    bank = TextBank(source=source, templates=TEMPLATES)
    bank(class_list(["cat"]))
    assert not list(bank.parameters())
    assert not bank.state_dict()


def test_a_changed_model_json_is_not_served_from_the_cache(
    model_files: tuple[str, str], tmp_path: Path
) -> None:
    """The activation is in no weight: only the config tells."""
    options: dict[str, Any] = {"templates": TEMPLATES, "cache_dir": str(tmp_path / "cache")}
    path = Path(write_json(tmp_path / "model.json", json.loads(Path(model_files[0]).read_text())))
    first = TextBank(source=CLIPSource(str(path), model_files[1]), **options)(class_list(["cat"]))
    write_json(path, tiny_config(quick_gelu=False))
    second = TextBank(source=CLIPSource(str(path), model_files[1]), **options)(class_list(["cat"]))
    assert (first - second).abs().max() > 1e-4
