"""The images of a shard, as they are stored: files, members of a tar, values of a parquet file."""

from __future__ import annotations

import hashlib
import os
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from tagclip.bulk.inputs import (
    DOWNLOAD,
    InputFile,
    file_size,
    input_kind,
    is_image_name,
    valid_text,
)
from tagclip.bulk.shards import Shard
from tagclip.data.image_io import IMAGE_SUFFIXES
from tagclip.errors import DatasetError
from tagclip.utils.files import is_address
from tagclip.utils.text import error_text, listed, shortened
from tagclip.utils.whole_tar import WholeTarInfo

__all__ = ["COLUMNS", "StoredImage", "shard_images", "with_image_sizes"]

# Columns of parquet files that hold images, the first that is there.
COLUMNS = ("image", "bytes", "image_bytes", "jpg", "jpeg", "png", "path", "image_path", "file_name")
# Of one image in a tar: a packed one may claim to be as long as it likes.
_MOST_BYTES = 1 << 30
# Rows of a parquet file that are read together.
_ROWS = 16
# Types of its columns, as pyarrow.types calls them.
_BYTES = ("binary", "large_binary", "fixed_size_binary", "binary_view")
_TEXTS = ("string", "large_string", "string_view")


class StoredImage(NamedTuple):
    """An image that is still to be decoded.

    Attributes:
        id: of its row.
        content: path, bytes of an image file, or why there is neither.
    """

    id: str
    content: str | bytes | DatasetError


def shard_images(shard: Shard, column: str = "", id_column: str = "") -> Iterator[StoredImage]:
    """Read the images of a shard one after the other, in the order of their rows.

    Args:
        shard: of files, whose paths are given back, or of one tar or parquet file.
        column: of a parquet file: bytes, paths relative to its folder, or the images of Hugging
            Face's datasets; "": the first of `COLUMNS`.
        id_column: of a parquet file, what ends the ids; "": numbers of the rows.

    Raises:
        DatasetError: the tar or parquet file is missing or damaged, has no images, no such column,
            or two images with one id.
        NotInstalledError: a parquet file without pyarrow.
    """
    if shard.kind == "files":
        return (StoredImage(member.id, member.path) for member in shard.members)
    if shard.kind == "tar":
        return _checked(shard.members[0], _tar_images(shard.members[0]))
    return _checked(shard.members[0], _parquet_images(shard.members[0], column, id_column))


def with_image_sizes(file: InputFile, column: str = "") -> InputFile:
    """Note the sizes of the images that a parquet file names by their paths.

    Of image bytes, which its own size stands for, nothing is read.

    Args:
        file: of any kind; others are given back as they are, and so is what cannot be read: its
            shard fails with the reason.
        column: see `shard_images`.

    Raises:
        NotInstalledError: a parquet file without pyarrow.
    """
    if input_kind(file.id) != "parquet":
        return file
    from tagclip.evaluation.segment_rows import require_pyarrow

    pyarrow = require_pyarrow()
    sizes, has_paths = hashlib.sha256(), False
    try:
        for path in _parquet_paths(file, column):
            sizes.update(b"%d\n" % file_size(path))
            has_paths = True
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException, DatasetError):
        return file
    return file._replace(images=sizes.hexdigest()) if has_paths else file


def _parquet_paths(file: InputFile, column: str) -> Iterator[str]:
    """Paths of the rows that have no bytes."""
    from pyarrow import parquet

    with parquet.ParquetFile(file.path) as table:
        column = _column(table.schema_arrow, file, column, "")
        kinds = _held(table.schema_arrow.field(column).type)
        if not any(_is_any(kind, _TEXTS) for kind in kinds):
            return
        groups = [
            index
            for index in range(table.num_row_groups)
            if not _has_all_bytes(table.metadata.row_group(index), column)
        ]
        for batch in table.iter_batches(_ROWS, groups, [column], use_threads=False):
            for value in batch[column]:
                content = _stored(file, "", value.as_py())
                if isinstance(content, str):
                    yield content


def _has_all_bytes(group: Any, column: str) -> bool:
    """Whether a row group says, unread, that all of its rows have bytes."""
    for index in range(group.num_columns):
        values = group.column(index)
        if values.path_in_schema == f"{column}.bytes":
            known = values.statistics
            return known is not None and known.has_null_count and known.null_count == 0
    return False


def _checked(file: InputFile, images: Iterator[tuple[str, Any]]) -> Iterator[StoredImage]:
    """Put the id of the file before those in it; refuse equal ones."""
    ids = set()
    for name, content in images:
        if name in ids:
            raise DatasetError(
                f"{file.path}: found two images called {name}, expected names of their own; "
                "rename one, or choose another --id-column"
            )
        ids.add(name)
        yield StoredImage(f"{file.id}/{name}", content)
    if not ids:
        raise DatasetError(
            f"{file.path}: found no image in it, expected some "
            f"({', '.join(sorted(IMAGE_SUFFIXES))}); leave it out"
        )


def _tar_images(file: InputFile) -> Iterator[tuple[str, bytes | DatasetError]]:
    name = "its beginning"
    try:
        # As a stream: one pass, packed or not, and nothing is written to the disk.
        with tarfile.open(file.path, "r|*", tarinfo=WholeTarInfo) as archive:
            for member in archive:
                # Otherwise the archive keeps them all.
                archive.members.clear()
                name = valid_text(str(PurePosixPath(member.name)).lstrip("/"))
                is_link = member.islnk() or member.issym()
                if not (member.isfile() or is_link) or not is_image_name(name):
                    continue
                if is_link:
                    yield (
                        name,
                        DatasetError(
                            f"{file.id}/{name}: found a link to {valid_text(member.linkname)}, "
                            "expected the image itself; pack it with tar --dereference "
                            "--hard-dereference, or leave the link out"
                        ),
                    )
                    continue
                if member.size > _MOST_BYTES:
                    yield (
                        name,
                        DatasetError(
                            f"{file.id}/{name}: image has {member.size} bytes, expected at most "
                            f"{_MOST_BYTES}; make it smaller"
                        ),
                    )
                    continue
                yield name, archive.extractfile(member).read()
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise _damaged(file, f"tar file, at {name}", error) from error


def _parquet_images(
    file: InputFile, column: str, id_column: str
) -> Iterator[tuple[str, str | bytes | DatasetError]]:
    from tagclip.evaluation.segment_rows import require_pyarrow

    pyarrow = require_pyarrow()
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file.path) as table:
            column = _column(table.schema_arrow, file, column, id_column)
            names = [column, id_column] if id_column else [column]
            number = 0
            for batch in table.iter_batches(_ROWS, columns=names, use_threads=False):
                # A column that is both comes once.
                rows = zip(batch[column], batch[names[-1]], strict=True)
                for value, name in rows:
                    if id_column and not name.is_valid:
                        raise DatasetError(
                            f"{file.path}: found null in column {id_column!r}, row {number}, "
                            "expected an id; fill it in, or choose another --id-column"
                        )
                    text = valid_text(str(name.as_py())) if id_column else str(number)
                    yield text, _stored(file, text, value.as_py())
                    number += 1
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        raise _damaged(file, "parquet file", error) from error


def _column(schema: Any, file: InputFile, column: str, id_column: str) -> str:
    wanted = [column] if column else COLUMNS
    for name in (*([id_column] if id_column else ()), *([column] if column else ())):
        if name not in schema.names:
            option = "--column" if name == column else "--id-column"
            raise DatasetError(
                f"{file.path}: found no column {name!r} ({option}), but "
                f"{listed(schema.names, 9)}; name one of these"
            )
    found = next((name for name in wanted if name in schema.names), None)
    if found is None:
        raise DatasetError(
            f"{file.path}: found columns {listed(schema.names, 9)}, expected one of "
            f"{', '.join(COLUMNS)}; name it with --column, or leave the file out"
        )
    for name in (found, *([id_column] if id_column else ())):
        if schema.names.count(name) > 1:
            raise DatasetError(
                f"{file.path}: found {schema.names.count(name)} columns {name!r}, expected one; "
                "rename the others"
            )
    kind = schema.field(found).type
    held = _held(kind)
    # Of a struct one of the two may be null in all rows.
    allowed = (*_BYTES, *_TEXTS, *(() if held == [kind] else ("null",)))
    if not all(_is_any(each, allowed) for each in held):
        raise DatasetError(
            f"{file.path}: column {found!r} holds {kind}, expected binary (image files), string "
            "(paths), or a struct of bytes and path; name another with --column"
        )
    return found


def _held(kind: Any) -> list[Any]:
    """Type of a column, or those of bytes and path, as in Hugging Face's datasets."""
    fields = {field.name: field.type for field in kind} if str(kind).startswith("struct") else {}
    return [fields[name] for name in ("bytes", "path") if name in fields] or [kind]


def _is_any(kind: Any, names: Sequence[str]) -> bool:
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return any(getattr(types, f"is_{name}")(kind) for name in names)


def _stored(file: InputFile, name: str, value: Any) -> str | bytes | DatasetError:
    if isinstance(value, dict):
        data = value.get("bytes")
        value = value.get("path") if data is None else data
    if isinstance(value, str) and is_address(value):
        found = f"found the address {shortened(value, 80)}, expected a path or the bytes of a file"
        return DatasetError(f"{file.id}/{name}: {found}; {DOWNLOAD}")
    if isinstance(value, str):
        return os.path.join(os.path.dirname(file.path), value)
    if isinstance(value, bytes):
        return value
    return DatasetError(f"{file.id}/{name}: found null, expected an image; fill it in")


def _damaged(file: InputFile, what: str, error: Exception) -> DatasetError:
    if isinstance(error, FileNotFoundError):
        return DatasetError(f"{file.path}: no such {what.partition(',')[0]}; bring it back")
    return DatasetError(f"{file.path}: damaged {what} ({error_text(error)}); bring a whole one")
