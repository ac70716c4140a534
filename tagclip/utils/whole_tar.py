"""Tar files of which nothing is passed over."""

from __future__ import annotations

import tarfile

__all__ = ["WholeTarInfo"]

_CHUNK = 1 << 20


class WholeTarInfo(tarfile.TarInfo):
    """``tarinfo`` of `tarfile.open`, for reading: the file must go on to its end mark.

    Otherwise tarfile takes a file that was cut between two members for a shorter one, and a
    damaged header, or what is behind the end mark, for nothing.
    """

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> tarfile.TarInfo:
        """Read the next header.

        Raises:
            tarfile.EOFHeaderError: there is the end mark, and nothing behind it.
            tarfile.ReadError: the file ends without it, goes on behind it, or is damaged.
        """
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:
            while chunk := archive.fileobj.read(_CHUNK):
                if chunk.count(0) != len(chunk):
                    raise tarfile.ReadError("goes on behind its end, as two in one") from None
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"ends without an end mark, or not as a tar: {error}") from None
