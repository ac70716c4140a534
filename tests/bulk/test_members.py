"""tagclip/bulk/members.py: what is in tar and parquet files, and what is said of bad ones."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pyarrow as pa
import pytest
from helpers.bulk import write_tar
from pyarrow import parquet

from tagclip.bulk import members
from tagclip.bulk.inputs import InputFile
from tagclip.bulk.members import COLUMNS, shard_images, with_image_sizes
from tagclip.bulk.shards import Shard
from tagclip.errors import DatasetError


def images(path: Path, **columns: str) -> list[tuple[str, object]]:
    """(id, content) of a tar or parquet file."""
    file = InputFile(f"below/{path.name}", str(path), 1)
    return [tuple(image) for image in shard_images(Shard("shard-000000", (file,)), **columns)]


def write_table(path: Path, /, **columns: list) -> Path:
    parquet.write_table(pa.table(columns), path)
    return path


def test_files_are_given_as_they_are() -> None:
    files = (InputFile("a.jpg", "/x/a.jpg", 1), InputFile("b.jpg", "/y", -1))
    assert list(shard_images(Shard("s", files))) == [("a.jpg", "/x/a.jpg"), ("b.jpg", "/y")]


@pytest.mark.parametrize(("suffix", "mode"), [(".tar", "w"), (".tar.gz", "w:gz"), (".tgz", "w:xz")])
def test_images_of_a_tar_in_their_order(tmp_path: Path, suffix: str, mode: str) -> None:
    """Packed in whatever way; webdataset's other members, hidden files and folders are none."""
    content = [(f"./x/{name}", name.encode()) for name in ("b.PNG", "a.json", "a.jpg", "._a.jpg")]
    path = write_tar(tmp_path / f"t{suffix}", content, mode)
    expected = [(f"below/{path.name}/x/{n}", n.encode()) for n in ("b.PNG", "a.jpg")]
    assert images(path) == expected


def test_a_member_that_is_too_large_is_an_error_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members, "_MOST_BYTES", 10)
    path = write_tar(tmp_path / "t.tar", [("a.png", b"x" * 11), ("b.png", b"x" * 10)])
    (_, error), (_, good) = images(path)
    assert str(error).startswith("below/t.tar/a.png: image has 11 bytes, expected at most 10")
    assert good == b"x" * 10


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_bytes_of_a_parquet_file(tmp_path: Path, kind: pa.DataType) -> None:
    many = [b"%d" % index for index in range(40)]
    path = write_table(tmp_path / "t.parquet", key=list(range(40)), jpg=pa.array(many, kind))
    assert images(path) == [(f"below/t.parquet/{i}", b"%d" % i) for i in range(40)]
    named = images(path, id_column="key", column="jpg")
    assert named == images(path)
    assert images(path, id_column="jpg")[39] == ("below/t.parquet/b'39'", b"39")


def test_paths_of_a_parquet_file_are_below_its_folder(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.parquet", path=["a/b.jpg", "/x/c.jpg"], name=["ä", "n\n"])
    found = images(path, id_column="name")
    assert found == [
        ("below/t.parquet/ä", f"{tmp_path}/a/b.jpg"),
        ("below/t.parquet/n\\n", "/x/c.jpg"),
    ]


def test_images_of_hugging_face_and_null(tmp_path: Path) -> None:
    rows = [
        {"bytes": b"1", "path": "a.jpg"},
        {"bytes": None, "path": "b.jpg"},
        {"bytes": None, "path": None},
        None,
    ]
    found = images(write_table(tmp_path / "t.parquet", image=rows))
    assert [content for _, content in found[:2]] == [b"1", f"{tmp_path}/b.jpg"]
    for number, (_, error) in enumerate(found[2:], 2):
        assert str(error) == f"below/t.parquet/{number}: found null, expected an image; fill it in"


def test_sizes_of_the_images_that_a_parquet_file_names(tmp_path: Path) -> None:
    """Whether they come, go or change; where rows have bytes, paths say nothing."""
    names = ["a.jpg", "b.jpg"]
    tables = {
        "text": names,
        "packed": pa.array(names).dictionary_encode(),
        "struct": [{"bytes": None, "path": name} for name in names],
        "mixed": [{"bytes": b"1", "path": "x.jpg"}, {"bytes": None, "path": "b.jpg"}, None],
        "held": [{"bytes": b"1", "path": name} for name in names],
        "bytes": [name.encode() for name in names],
        "other": [1, 2],
    }
    files = {
        name: InputFile(f"{name}.parquet", str(write_table(tmp_path / f"{name}.parquet", img=t)), 1)
        for name, t in tables.items()
    }
    files["text"] = files["text"]._replace(id="below/text.parquet")
    (tmp_path / "a.jpg").write_bytes(b"1")
    seen = []
    for content in (b"", b"12", b"123"):
        if content:
            (tmp_path / "b.jpg").write_bytes(content)
        seen.append({name: with_image_sizes(f, "img").images for name, f in files.items()})
    for name in files:
        expected = 3 if name in ("text", "packed", "struct", "mixed") else 1
        assert len({found[name] for found in seen}) == expected, name
        assert bool(seen[0][name]) == (expected > 1)
    assert seen[0]["text"] == seen[0]["packed"] == seen[0]["struct"]
    gone = InputFile("gone.parquet", str(tmp_path / "gone.parquet"), -1)
    for file in (gone, InputFile("a.jpg", "a.jpg", 1), InputFile("t.tar", "t.tar", 1)):
        assert with_image_sizes(file) == file


def test_image_bytes_are_not_read_for_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the file itself says that none is null."""
    rows = [{"bytes": b"1", "path": "a.jpg"}, {"bytes": b"2", "path": "b.jpg"}]
    rows += [{"bytes": None, "path": "c.jpg"}, {"bytes": b"3", "path": "d.jpg"}]
    path, read = tmp_path / "t.parquet", []
    parquet.write_table(pa.table({"image": rows}), path, row_group_size=2)
    stored = members._stored
    monkeypatch.setattr(members, "_stored", lambda *a: read.append(a[2]["path"]) or stored(*a))
    assert with_image_sizes(InputFile(path.name, str(path), 1)).images
    assert read == ["c.jpg", "d.jpg"]


def test_addresses_are_no_paths(tmp_path: Path) -> None:
    """Lists of images on the web are parquet files with a column of these."""
    path = write_table(tmp_path / "t.parquet", url=["https://a.b/c.jpg", "d.jpg"])
    (_, first), second = images(path, column="url")
    assert second == ("below/t.parquet/1", str(tmp_path / "d.jpg"))
    assert str(first).startswith(
        "below/t.parquet/0: found the address https://a.b/c.jpg, expected a path or the bytes of a "
        "file; download the images"
    )


def test_the_first_known_column_is_taken_unless_named(tmp_path: Path) -> None:
    columns = {name: [name.encode()] for name in reversed(COLUMNS)}
    path = write_table(tmp_path / "t.parquet", other=[b"other"], **columns)
    assert images(path)[0][1] == b"image"
    assert images(path, column="other")[0][1] == b"other"


def bad_files(root: Path) -> dict[str, tuple[Path, dict[str, str], str]]:
    """Name -> file, columns, what the message says."""
    whole = write_tar(root / "whole.tar", [("a.png", b"x" * 3000), ("b.png", b"x" * 3000)])
    (root / "cut.tar").write_bytes(whole.read_bytes()[:5000])
    (root / "text.tar").write_text("hello" * 500)
    (root / "short.tgz").write_bytes(
        write_tar(root / "x.tgz", [("a.png", bytes(range(256)) * 99)], "w:gz").read_bytes()[:-400]
    )
    write_tar(root / "empty.tar", [])
    write_tar(root / "texts.tar", [("a.json", b"{}")])
    write_tar(root / "twice.tar", [("a.png", b"1"), ("./a.png", b"2")])
    write_table(root / "names.parquet", name=["a"])
    write_table(root / "numbers.parquet", image=[[1, 2]])
    for name, rows in {
        "lists": [[b"1"]],
        "maps": pa.array([[("a", "b")]], pa.map_(pa.string(), pa.string())),
        "other": [{"x": "a.jpg"}],
        "struct": [{"bytes": 1, "path": "a.jpg"}],
    }.items():
        write_table(root / f"{name}.parquet", image=rows)
    image = pa.array([b"1"])
    parquet.write_table(pa.table([image, image], ["image", "image"]), root / "double.parquet")
    latin = pa.array([b"caf\xe9"]).view(pa.string())
    write_table(root / "latin.parquet", image=latin)
    write_table(root / "ids.parquet", image=[b"1", b"2"], key=[7, 7])
    write_table(root / "no id.parquet", image=[b"1", b"2"], key=[7, None])
    write_table(root / "none.parquet", image=pa.array([], pa.binary()))
    (root / "text.parquet").write_text("hello")
    cases = {
        "cut.tar": ({}, "damaged tar file, at b.png (ReadError: unexpected end of data)"),
        "text.tar": ({}, "damaged tar file, at its beginning (ReadError"),
        "short.tgz": ({}, "damaged tar file, at a.png"),
        "empty.tar": ({}, "found no image in it, expected some (.bmp"),
        "texts.tar": ({}, "found no image in it, expected some (.bmp"),
        "twice.tar": ({}, "found two images called a.png, expected names of their own"),
        "missing.tar": ({}, "no such tar file"),
        "names.parquet": ({}, "found columns name, expected one of image, bytes"),
        "numbers.parquet": ({}, "column 'image' holds list<"),
        "lists.parquet": ({}, "column 'image' holds list<"),
        "maps.parquet": ({}, "column 'image' holds map<"),
        "other.parquet": ({}, "column 'image' holds struct<x"),
        "struct.parquet": ({}, "column 'image' holds struct<bytes: int64"),
        "double.parquet": ({}, "found 2 columns 'image', expected one"),
        "latin.parquet": ({}, "damaged parquet file (UnicodeDecodeError"),
        "ids.parquet": ({"id_column": "key"}, "found two images called 7"),
        "no id.parquet": (
            {"id_column": "key"},
            "found null in column 'key', row 1, expected an id",
        ),
        "none.parquet": ({}, "found no image in it"),
        "text.parquet": ({}, "damaged parquet file (ArrowInvalid"),
        "missing.parquet": ({}, "no such parquet file"),
    }
    return {name: (root / name, *case) for name, case in cases.items()} | {
        "column": (
            root / "ids.parquet",
            {"column": "img"},
            "found no column 'img' (--column), but image, key; name one of these",
        ),
        "id column": (root / "ids.parquet", {"id_column": "id"}, "found no column 'id' (--id-col"),
    }


def test_a_bad_file_is_one_line_that_names_it(tmp_path: Path) -> None:
    for name, (path, columns, text) in bad_files(tmp_path).items():
        with pytest.raises(DatasetError) as caught:
            images(path, **columns)
        assert str(caught.value).startswith(f"{path}: {text}"), name
        assert "\n" not in str(caught.value)


def test_images_before_the_damage_come(tmp_path: Path) -> None:
    path = bad_files(tmp_path)["cut.tar"][0]
    stream = shard_images(Shard("s", (InputFile("t.tar", str(path), 1),)))
    assert next(stream) == ("t.tar/a.png", b"x" * 3000)
    with pytest.raises(DatasetError):
        next(stream)


def test_no_image_of_a_damaged_tar_is_passed_over(tmp_path: Path) -> None:
    """Cut between two members, a header that was overwritten, and two tars in one file."""
    path = write_tar(tmp_path / "t.tar", [(f"{name}.png", b"x" * 600) for name in "abc"])
    whole, second = path.read_bytes(), 512 + 1024
    for content in (
        whole[:second],
        whole[:second] + b"\1" + whole[second + 1 :],
        whole + whole,
        whole[: 3 * second] + b"x" * 512,
    ):
        path.write_bytes(content)
        with pytest.raises(DatasetError, match=r"t\.tar: damaged tar file, at [ac]\.png"):
            images(path)
    for content in (whole, whole[: 3 * second + 512], whole + bytes(1 << 20)):
        path.write_bytes(content)
        assert len(images(path)) == 3


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_an_image_that_is_a_link_is_an_error_of_its_own(tmp_path: Path, kind: bytes) -> None:
    path = write_tar(tmp_path / "t.tar", [("a.png", b"x")])
    link = tarfile.TarInfo("b.png")
    link.type, link.linkname = kind, "a.png"
    with tarfile.open(path, "a") as archive:
        archive.addfile(link)
    (_, good), (name, error) = images(path)
    assert (good, name) == (b"x", "below/t.tar/b.png")
    assert str(error).startswith("below/t.tar/b.png: found a link to a.png, expected the image")
