"""The run-length code of Label Studio's brush, that of @thi.ng/rle-pack.

The code is a stream of bits: 32 bits for the number n of values, 5 for the bits of a value less 1,
four times 4 for the bits of a length less 1; then blocks until there are n values. A block is 1 bit
(1: a run of one value, 0: single values), 2 bits which of the four sizes its length has, the length
less 1, and the value or values. Label Studio stores the four bytes of RGBA per pixel, row by row.
"""

from __future__ import annotations

import numpy as np

from tagclip.errors import DatasetError

__all__ = ["check_rle_pack", "decode_rle_pack", "encode_rle_pack"]

_HEAD = 32 + 5 + 4 * 4
# Bits of a length, as Label Studio's own encoder has them.
_SIZES = np.array([3, 4, 8, 16])


def check_rle_pack(code: bytes, size: tuple[int, int]) -> None:
    """Check the head of a code.

    Raises:
        DatasetError: it is that of another size. The message lacks the file.
    """
    count, word = _take(code, 0, 32), _take(code, 32, 5) + 1
    if count != 4 * size[0] * size[1] or word != 8:
        raise DatasetError(
            f"found a brush of {count} values of {word} bits, expected {4 * size[0] * size[1]} of "
            f"8 bits, four per pixel of {size[1]}x{size[0]}; export it again"
        )


def decode_rle_pack(code: bytes, size: tuple[int, int]) -> np.ndarray:
    """Decode the mask of one brush region.

    Args:
        code: the bytes of ``value.rle``.
        size: (height, width) of the image, ``original_height`` and ``original_width``.

    Returns:
        (H, W) bool: where alpha is not 0, which is what the editor colours.

    Raises:
        DatasetError: the code ends early, or is that of another size. The message lacks the file.
    """
    check_rle_pack(code, size)
    bits = np.unpackbits(np.frombuffer(code, np.uint8))
    count = 4 * size[0] * size[1]

    def take(start: int, length: int) -> int:
        return _take(code, start, length)

    lengths = [take(37 + 4 * index, 4) + 1 for index in range(4)]
    values = np.empty(count, np.uint8)
    place, done = _HEAD, 0
    while done < count:
        head = take(place, 3)
        length = lengths[head & 3]
        end = done + take(place + 3, length) + 1
        if end > count:
            raise DatasetError(f"found a brush of more than its {count} values; export it again")
        place += 3 + length
        if head & 4:
            values[done:end] = take(place, 8)
            place += 8
        else:
            stop = place + 8 * (end - done)
            take(stop - 1, 1)
            values[done:end] = np.packbits(bits[place:stop])
            place = stop
        done = end
    return values[3::4].reshape(size) > 0


def _take(code: bytes, start: int, length: int) -> int:
    """The unsigned number of some bits."""
    if start + length > 8 * len(code):
        raise DatasetError(f"found a brush that ends after {len(code)} bytes; export it again")
    part = code[start // 8 : (start + length + 7) // 8]
    return int.from_bytes(part, "big") >> -(start + length) % 8 & ((1 << length) - 1)


def encode_rle_pack(mask: np.ndarray) -> bytes:
    """Encode a (H, W) bool mask as a brush region, in runs alone.

    Each pixel has four bytes, red, green, blue and alpha, all 255 on the mask and 0 elsewhere.
    """
    flat = mask.ravel()
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    lengths = np.diff([*starts, flat.size]) * 4
    # A run is at most as long as the largest size can say.
    longest = 1 << int(_SIZES[-1])
    pieces = -(-lengths // longest)
    values = np.repeat(flat[starts], pieces)
    rest = lengths - (pieces - 1) * longest
    lengths = np.full(len(values), longest)
    lengths[np.cumsum(pieces) - 1] = rest
    kinds = np.searchsorted(1 << _SIZES, lengths)
    sizes = _SIZES[kinds]
    # A block: 1, its kind in 2 bits, the length, the byte; its bits count from the left.
    codes = (((4 | kinds) << sizes | (lengths - 1)) << 8) | np.where(values, 255, 0)
    counts = 3 + sizes + 8
    head = f"{4 * flat.size:032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in _SIZES)
    ends = np.cumsum(counts)
    shifts = np.repeat(ends, counts) - 1 - np.arange(ends[-1])
    bits = (np.repeat(codes, counts) >> shifts) & 1
    return np.packbits(np.concatenate([[c == "1" for c in head], bits.astype(bool)])).tobytes()
