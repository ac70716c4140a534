"""Bytes of files that visitors bring: room by address, and what makes it."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given
from hypothesis import strategies as st

from tagclip.projects.webdemo.space import UploadSpace


def test_a_file_of_two_visitors_stays_as_long_as_one_has_it(tmp_path: Path) -> None:
    space, path = UploadSpace(10, 100), tmp_path / "a.png"
    path.write_bytes(bytes(8))
    for visitor in ("a", "b"):
        assert not space.take(visitor, 9)
        space.arrived(visitor, 9, [str(path)])
    assert space.held == 8
    assert not space.take("a", 9) and path.exists()
    assert not space.take("b", 9) and not path.exists()


@given(
    st.lists(
        st.tuples(
            st.sampled_from(("take", "delete", "later")), st.sampled_from("abc"),
            st.integers(0, 9), st.integers(0, 3),
        ),
        max_size=40,
    )
)  # fmt: skip
def test_room_is_that_of_a_count_of_all_files(steps: list[tuple[str, str, int, int]]) -> None:
    """Sums that are kept equal those that are made anew, whatever comes and goes."""
    now = 0.0
    with TemporaryDirectory() as folder:
        space = UploadSpace(20, 40, least=3, clock=lambda: now)
        for kind, visitor, nbytes, name in steps:
            path = Path(folder, str(name))
            if kind == "take" and not space.take(visitor, nbytes):
                if not path.exists():
                    path.write_bytes(bytes(name))
                space.arrived(visitor, nbytes, [str(path)])
            elif kind == "delete":
                path.unlink(missing_ok=True)
            elif kind == "later":
                now += 10
            files = {p: n for own in space._files.values() for p, n in own.items()}
            assert space.held == sum(files.values())
            for who, own in space._files.items():
                others = {p for each, o in space._files.items() if each != who for p in o}
                assert own and space.held_by(who) == sum(own.values())
                assert space._alone[who] == sum(n for p, n in own.items() if p not in others)
            assert set(files) == set(space._owners)
        now += 10
        # Nobody has more than may be, and files that are gone count for nothing.
        for path in Path(folder).iterdir():
            path.unlink()
        assert not space.take("d", 20)


def test_a_small_file_counts_for_its_place(tmp_path: Path) -> None:
    space = UploadSpace(100, 1000, least=10)
    paths = [tmp_path / str(index) for index in range(30)]
    for path in paths:
        path.write_bytes(b"x")
    space.arrived("a", 0, map(str, paths[:20]))
    assert space.held == 200
    assert not space.take("a", 1) and space.held == 91
    assert [path.exists() for path in paths[:20]] == [False] * 11 + [True] * 9


def test_deleted_files_are_looked_for_where_room_lacks_and_not_again_at_once(
    tmp_path: Path,
) -> None:
    now = 0.0
    space, path = UploadSpace(10, 10, clock=lambda: now), tmp_path / "a"
    for seconds, has_room in ((0, True), (1, False), (6, True)):
        path.write_bytes(bytes(8))
        space.arrived("a", 0, [str(path)])
        path.unlink()
        now = float(seconds)
        assert (space.refusal("b", 5) == "") == has_room


def test_the_folder_of_a_file_goes_with_it(tmp_path: Path) -> None:
    """gradio makes one for each content; another folder is none of its."""
    now, places = [0.0], []
    space = UploadSpace(250, 1000, clock=lambda: now[0])
    for number in range(4):
        place = tmp_path / ("kept" if number == 1 else f"{number:064x}")
        place.mkdir()
        (place / "a.png").write_bytes(bytes(100))
        assert space.take("me", 100) == ""
        space.arrived("me", 100, [str(place / "a.png")])
        places.append(place)
    assert [place.exists() for place in places] == [False, True, True, True]
    assert not any(places[1].iterdir())
    # One that the page deletes, too.
    (places[2] / "a.png").unlink()
    now[0] = 1e6
    space.arrived("me", 0, [])
    assert [place.exists() for place in places] == [False, True, False, True]
