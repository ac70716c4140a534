"""tagclip/bulk/inputs.py: which files a command line names, and what they are called."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tagclip.bulk import inputs as bulk_inputs
from tagclip.bulk.inputs import GONE, find_inputs, input_kind, valid_text
from tagclip.demo.media import find_images
from tagclip.errors import ConfigError


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * (1 + len(name)))


def ids(*inputs: Path | str, output: Path = Path("/nowhere")) -> list[str]:
    return [file.id for file in find_inputs(list(map(str, inputs)), output)]


def test_a_folder_gives_its_images_and_archives_by_code_points(tmp_path: Path) -> None:
    names = ["b.JPG", "a/z.png", "a/Z.png", "a.jpg", "é.png", "𝔞.webp", "\uff5e.gif", "s/0.tar"]
    touch(tmp_path, *names, "t.parquet", "x.tar.gz", "y.tgz", "note.txt", ".h.png", ".d/x.png")
    found = ids(tmp_path)
    assert found == sorted((*names, "t.parquet", "x.tar.gz", "y.tgz"))
    # What UTF-16 would order the other way round.
    assert found[-2:] == ["\uff5e.gif", "𝔞.webp"]
    assert {file.size for file in find_inputs([str(tmp_path / "a")], tmp_path / "o")} == {8}


@pytest.mark.parametrize("tool", ["bulk", "segment"])
@pytest.mark.parametrize("what", ["folder", "glob"])
def test_images_that_are_left_out_are_counted(
    tmp_path: Path, tool: str, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, "a.png", "b.JFIF", "c.jpe", "d.HEIC", "e/f.heic", "e/g.avif", "note.txt", "h")
    place = str(tmp_path if what == "folder" else tmp_path / "**" / "*")
    if tool == "bulk":
        found = ids(place)
    else:
        found = [str(path.relative_to(tmp_path)) for path, _ in find_images([place], None)]
    assert found == ["a.png", "b.JFIF", "c.jpe"]
    (line,) = caplog.messages
    said = f"{place}: left out 3 files by their suffixes (1 .avif, 2 .heic), expected .bmp, "
    assert line.startswith(said)
    caplog.clear()
    touch(tmp_path, "only/a.png", "only/b.txt")
    assert ids(tmp_path / "only") == ["a.png"] and not caplog.text


def test_a_glob_counts_from_its_fixed_folder(tmp_path: Path) -> None:
    touch(tmp_path, "in/1/a.jpg", "in/2/b.jpg", "in/2/c.png", "other/d.jpg")
    assert ids(tmp_path / "in" / "*" / "*.jpg") == ["1/a.jpg", "2/b.jpg"]
    assert ids(tmp_path / "**" / "*.jpg") == ["in/1/a.jpg", "in/2/b.jpg", "other/d.jpg"]
    assert ids(tmp_path / "in" / "2" / "[bc].*") == ["b.jpg", "c.png"]


def test_a_glob_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.jpg", "b/c.jpg")
    monkeypatch.chdir(tmp_path)
    assert ids("*.jpg") == ["a.jpg"]
    assert ids("./**/*.jpg") == ["a.jpg", "b/c.jpg"]
    assert ids(".") == ["a.jpg", "b/c.jpg"]


def test_a_list_names_files_as_written_and_missing_ones_too(tmp_path: Path) -> None:
    touch(tmp_path, "in/b.dat", "in/a.jpg", "out.jpg")
    (tmp_path / "in" / "list.txt").write_bytes(
        b"\xef\xbb\xbfb.dat\r\n\nmissing.png\na.jpg\na.jpg\n../out.jpg\ncaf\xe9.jpg"
    )
    found = find_inputs([str(tmp_path / "in" / "list.txt")], tmp_path / "o")
    expected = ["../out.jpg", "a.jpg", "b.dat", "caf\\xe9.jpg", "missing.png"]
    assert [file.id for file in found] == expected
    assert [file.size == GONE for file in found] == [False, False, False, True, True]
    assert Path(found[1].path).samefile(tmp_path / "in" / "a.jpg")


def test_a_list_of_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("a.jpg\nb.jpg\n", "utf-16")
    with pytest.raises(
        ConfigError, match=r"list\.txt: found NUL, expected a path per line in UTF-8"
    ):
        find_inputs([str(path)], tmp_path / "o")


def test_addresses_in_a_list_are_refused_before_anything_is_done(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    for address in ("https://a.b/c.jpg", "s3://bucket/c.jpg"):
        path.write_text(f"a.jpg\n{address}\n")
        message = f"INPUT {path}: line 2 is the address {address}, expected the path of a file; do"
        with pytest.raises(ConfigError, match=re.escape(message)):
            find_inputs([str(path)], tmp_path / "o")


def test_one_file_has_its_name_and_any_suffix(tmp_path: Path) -> None:
    touch(tmp_path, "in/photo.dat", "in/a.tar")
    assert ids(tmp_path / "in" / "photo.dat", tmp_path / "in" / "a.tar") == ["a.tar", "photo.dat"]


def test_names_that_are_no_utf8_or_no_line_are_escaped(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path)
    for name in (b"caf\xe9.jpg", b"two\nlines.jpg"):
        Path(os.fsdecode(os.path.join(folder, name))).write_bytes(b"x")
    found = find_inputs([str(tmp_path)], tmp_path / "o")
    assert [file.id for file in found] == ["caf\\xe9.jpg", "two\\nlines.jpg"]
    assert all(os.path.isfile(file.path) for file in found)
    # Of tars and parquet files: a csv reader takes a carriage return for the end of a row.
    assert valid_text("a\rb\x1b[2J\0\u2028\x85\t\xa0é") == "a\\rb\\x1b[2J\\x00\\u2028\\x85\t\xa0é"


def test_a_glob_finds_what_is_behind_links_once(tmp_path: Path) -> None:
    touch(tmp_path, "in/b/x.jpg", "else/y.jpg")
    (tmp_path / "in" / "b" / "up").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "a").symlink_to(tmp_path / "in" / "b")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "else")
    # Of links to files each is an image, as it is in a folder.
    (tmp_path / "in" / "b" / "z.jpg").symlink_to("x.jpg")
    expected = ["b/x.jpg", "b/z.jpg", "link/y.jpg"]
    assert ids(tmp_path / "in") == expected
    assert ids(tmp_path / "in" / "**" / "*.jpg") == expected
    assert ids(tmp_path / "in" / "b*" / "**" / "x.*") == ["b/x.jpg"]
    shown = find_images([str(tmp_path / "in" / "**" / "*.jpg")], None)
    assert [path.name for path, _ in shown] == ["x.jpg", "y.jpg"]


def test_a_link_to_nothing_is_an_image_that_is_missing(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    (tmp_path / "b.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "folder.jpg").mkdir()
    assert [file.size for file in find_inputs([str(tmp_path)], tmp_path / "o")] == [6, GONE]


def test_what_is_in_the_output_is_no_input(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "out/segments/shard-000000.parquet", "out/x.png", "outside/b.png")
    (tmp_path / "link").symlink_to(tmp_path / "out" / "segments")
    assert ids(tmp_path, output=tmp_path / "out") == ["a.jpg", "outside/b.png"]
    assert ids(tmp_path / "*" / "*.p*", output=tmp_path / "out") == ["outside/b.png"]
    for text, output, found in (("", "", "4 files"), ("out", "out", "2 files"), ("out", "", "2 f")):
        with pytest.raises(ConfigError, match=f"found {found}.*, all within --output .*another"):
            ids(tmp_path / text, output=tmp_path / output)


def test_two_files_of_one_id_are_refused_one_file_twice_is_not(tmp_path: Path) -> None:
    touch(tmp_path, "x/a.jpg", "y/a.jpg", "y/b.jpg")
    with pytest.raises(ConfigError, match=r"x/a.jpg and \S+y/a.jpg would both be called a.jpg"):
        ids(tmp_path / "x", tmp_path / "y")
    assert ids(tmp_path) == ["x/a.jpg", "y/a.jpg", "y/b.jpg"]
    assert ids(tmp_path / "y", tmp_path / "y" / "a.jpg") == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize("name", ["", "missing", "*.jpg", "empty.txt", "texts"])
def test_an_input_that_names_nothing_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty.txt").touch()
    touch(tmp_path, "texts/readme.md")
    with pytest.raises(ConfigError, match="found nothing there, expected images") as caught:
        ids(tmp_path / name / "*.gif" if not name else tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.TAR", "tar"), ("a.tar.gz", "tar"), ("a.parquet", "parquet"), ("a.tar.jpg", "files")],
)
def test_kinds_go_by_suffix(name: str, kind: str) -> None:
    assert input_kind(name) == kind


NAMES = st.lists(
    st.text(st.characters(blacklist_characters="/\0\n", blacklist_categories=["Cs"]), min_size=1)
    .filter(lambda name: not name.startswith(".") and len(name.encode()) < 60)
    .map(lambda name: f"{name}.jpg"),
    unique=True,
    min_size=1,
    max_size=9,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(names=NAMES, seed=st.randoms())
def test_the_order_is_not_that_of_the_disk(
    names: list[str], seed: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shuffled(root: Path) -> list[Path]:
        files = [Path(root, name) for name in names]
        seed.shuffle(files)
        return files

    with monkeypatch.context() as patch:
        patch.setattr(bulk_inputs, "files_below", shuffled)
        patch.setattr(bulk_inputs, "file_size", lambda path: 1)
        found = find_inputs(["/"], Path("/nowhere"))
    ids = map(valid_text, names)
    assert [file.id for file in found] == sorted(ids, key=lambda name: name.encode("utf-32-be"))
    assert {(file.id, file.path) for file in found} == {(valid_text(n), f"/{n}") for n in names}
