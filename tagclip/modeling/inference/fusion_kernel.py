"""The Triton kernel of `tagclip.modeling.inference.triton_fusion`; importing it needs triton.

A program makes PIXELS neighbouring pixels of one row of the result, CLASSES classes at a time: it
adds up their scores over views, pixels of the view's canvas that the resize reads, and windows,
and keeps the best class so far. Logits are gathered where they are, from the cache: 4 KiB per class
and window. What does not depend on the class (places, weights, trusty map) is worked out once for
CLASSES of them.

An interpolated score is a sum of weights times sigmoids, so weights of resize, windows and views
are one factor, into which the gate goes, too: `gated = score * factor + offset`.
"""

from __future__ import annotations

import triton
from triton import language as tl

__all__ = ["FIELDS", "fuse"]

# Of a view, in the order in which the kernel's table holds them.
FIELDS = (
    *("class_address", "trusty_address", "window_stride", "class_stride", "trusty_stride"),
    *("rows", "columns", "padded_height", "padded_width", "canvas_height", "canvas_width"),
    *("window_height", "window_width", "top_count", "left_count", "tops", "lefts", "mirrored"),
)
_FIELDS = tl.constexpr(len(FIELDS))
# As in `Gate`.
_CLIP = tl.constexpr(4.0)


@triton.jit
def _source(position, size_in, size_out):
    """Where pixels of a resized axis are read: the index before, and how far on to the next.

    In whole numbers: as float32, (position + 1/2) * size_in / size_out - 1/2 is off by 3e-5 at the
    600th pixel.
    """
    numerator = tl.maximum((2 * position + 1) * size_in - size_out, 0)
    index = numerator // (2 * size_out)
    rest = numerator - index * (2 * size_out)
    return index, rest.to(tl.float32) / (2 * size_out).to(tl.float32)


@triton.jit
def _tap(position, tap, size_in, size_out):
    """Index and weight of the first (tap 0) or the second pixel that a pixel is made of."""
    index, way = _source(position, size_in, size_out)
    return tl.minimum(index + tap, size_in - 1), tl.where(tap == 0, 1 - way, way)


@triton.jit
def _touching(origins, count, length, first, last):
    """Range of the windows that hold any of the pixels first ... last of an axis."""
    start, end = 0, 0
    for i in range(count):
        origin = tl.load(origins + i).to(tl.int32)
        start += (origin + length <= first).to(tl.int32)
        end += (origin <= last).to(tl.int32)
    return start, end


@triton.jit
def _holds(origin, length, pixel):
    return (origin <= pixel) & (pixel < origin + length)


@triton.jit
def _bilinear(base, up, down, left, right, row_way, column_way, mask):
    """Blend of four neighbours; 0 where the mask is off."""
    a = tl.load(base + (up + left), mask=mask, other=0.0)
    b = tl.load(base + (up + right), mask=mask, other=0.0)
    c = tl.load(base + (down + left), mask=mask, other=0.0)
    d = tl.load(base + (down + right), mask=mask, other=0.0)
    above = a * (1 - column_way) + b * column_way
    below = c * (1 - column_way) + d * column_way
    return above * (1 - row_way) + below * row_way


@triton.jit
def _sigmoid(logits):
    return 1 / (1 + tl.exp(-logits))


# Values that differ from image to image: without this each new one could compile anew.
_VARYING = ("view_count", "class_count", "height", "width", "gates_seen", "gates_unseen")


@triton.jit(do_not_specialize=(*_VARYING, "weighs_bias", "adds", "sign"))
def fuse(
    labels,
    scores,
    trusty_map,
    seen_mask,
    table,
    view_count,
    class_count,
    height,
    width,
    gates_seen,
    gates_unseen,
    weighs_bias,
    adds,
    sign,
    bias,
    weight_of_map,
    lowest,
    HAS_TRUSTY: tl.constexpr,
    PIXELS: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """Write labels, their scores and the trusty map of PIXELS pixels of one row.

    Args:
        labels: (height, width) int32.
        scores: (height, width) float32; nan where any class has nan.
        trusty_map: (height, width) float32; anything without HAS_TRUSTY.
        seen_mask: (class_count,) bool.
        table: int64: `FIELDS` of every view, then the origins of the windows, to which its fields
            ``tops`` and ``lefts`` point.
        view_count, class_count, height, width: sizes, below 2^15 but for the classes.
        gates_seen, gates_unseen, weighs_bias, adds: 0 or 1: w multiplies seen scores, 1 - w unseen
            ones, w the bias, the map is added to unseen ones.
        sign: -1 if the trusty token was trained on unseen pixels, 1 otherwise.
        bias, weight_of_map, lowest: ``bias``, half of ``scale`` and the lower clip of `Gate`.
        HAS_TRUSTY: whether there are trusty logits.
    """
    row, first_column = tl.program_id(0), tl.program_id(1) * PIXELS
    column = first_column + tl.arange(0, PIXELS)
    last_column = tl.minimum(first_column + PIXELS, width) - 1
    is_inside = column < width
    label = tl.zeros([PIXELS], tl.int32)
    best = tl.full([PIXELS], float("-inf"), tl.float32)
    has_nan = tl.zeros([PIXELS], tl.int32)
    trusty = tl.zeros([PIXELS], tl.float32)
    for start in range(0, class_count, CLASSES):
        classes = start + tl.arange(0, CLASSES)[:, None]
        is_class = classes < class_count
        is_seen = tl.load(seen_mask + classes, mask=is_class, other=0) != 0
        total = tl.zeros([CLASSES, PIXELS], tl.float32)
        seen_offset = tl.zeros([PIXELS], tl.float32)
        unseen_offset = tl.zeros([PIXELS], tl.float32)
        trusty = tl.zeros([PIXELS], tl.float32)
        for view in range(view_count):
            entry = table + view * _FIELDS
            class_logits = tl.load(entry).to(tl.pointer_type(tl.float32))
            trusty_logits = tl.load(entry + 1).to(tl.pointer_type(tl.float32))
            window_stride, class_stride = tl.load(entry + 2), tl.load(entry + 3)
            trusty_stride = tl.load(entry + 4)
            rows, columns = tl.load(entry + 5).to(tl.int32), tl.load(entry + 6).to(tl.int32)
            padded_height = tl.load(entry + 7).to(tl.int32)
            padded_width = tl.load(entry + 8).to(tl.int32)
            canvas_height = tl.load(entry + 9).to(tl.int32)
            canvas_width = tl.load(entry + 10).to(tl.int32)
            window_height = tl.load(entry + 11).to(tl.int32)
            window_width = tl.load(entry + 12).to(tl.int32)
            top_count = tl.load(entry + 13).to(tl.int32)
            left_count = tl.load(entry + 14).to(tl.int32)
            tops, lefts = table + tl.load(entry + 15), table + tl.load(entry + 16)
            class_logits += classes * class_stride
            # A mirrored view answers for column c at width - 1 - c.
            is_mirrored = tl.load(entry + 17) != 0
            place = tl.where(is_mirrored, width - 1 - column, column)
            place = tl.minimum(tl.maximum(place, 0), width - 1)
            first_place = tl.where(is_mirrored, width - 1 - last_column, first_column)
            last_place = tl.where(is_mirrored, width - 1 - first_column, last_column)
            # A canvas of the result's size is read at one pixel, others at up to two by two.
            taps_down = tl.where(canvas_height == height, 1, 2)
            taps_across = tl.where(canvas_width == width, 1, 2)
            for tap in range(taps_down * taps_across):
                y, y_weight = _tap(row, tap // taps_across, canvas_height, height)
                tap_across = tap % taps_across
                x, x_weight = _tap(place, tap_across, canvas_width, width)
                first_x, _ = _tap(first_place, tap_across, canvas_width, width)
                last_x, _ = _tap(last_place, tap_across, canvas_width, width)
                first_top, end_top = _touching(tops, top_count, window_height, y, y)
                first_left, end_left = _touching(lefts, left_count, window_width, first_x, last_x)
                count = tl.zeros([PIXELS], tl.int32)
                for j in range(first_left, end_left):
                    left = tl.load(lefts + j).to(tl.int32)
                    count += _holds(left, window_width, x).to(tl.int32)
                count *= (end_top - first_top) * view_count
                tap_weight = y_weight * x_weight / count.to(tl.float32)
                for i in range(first_top, end_top):
                    top = tl.load(tops + i).to(tl.int32)
                    up, row_way = _source(y - top, rows, padded_height)
                    down = tl.minimum(up + 1, rows - 1) * columns
                    up *= columns
                    for j in range(first_left, end_left):
                        left = tl.load(lefts + j).to(tl.int32)
                        mask = is_inside & _holds(left, window_width, x)
                        weight = tl.where(mask, tap_weight, 0.0)
                        before, column_way = _source(x - left, columns, padded_width)
                        after = tl.minimum(before + 1, columns - 1)
                        window = i * left_count + j
                        seen_factor, unseen_factor = weight, weight
                        bias_factor = weight
                        if HAS_TRUSTY:
                            base = trusty_logits + window * trusty_stride
                            logit = sign * _bilinear(
                                base, up, down, before, after, row_way, column_way, mask
                            )
                            w = _sigmoid(logit)
                            trusty += weight * w
                            seen_factor *= tl.where(gates_seen != 0, w, 1.0)
                            unseen_factor *= tl.where(gates_unseen != 0, 1 - w, 1.0)
                            bias_factor *= tl.where(weighs_bias != 0, w, 1.0)
                            # log((1 - w) / w) is -logit. Comparisons leave nan as it is.
                            added = tl.where(-logit < lowest, lowest, -logit)
                            added = weight_of_map * tl.where(added > _CLIP, _CLIP, added)
                            unseen_offset += weight * tl.where(adds != 0, added, 0.0)
                        seen_offset -= bias * bias_factor
                        base = class_logits + window * window_stride
                        is_read = is_class & mask[None, :]
                        logit = _bilinear(
                            base,
                            up,
                            down,
                            before[None, :],
                            after[None, :],
                            row_way,
                            column_way[None, :],
                            is_read,
                        )
                        factor = tl.where(is_seen, seen_factor[None, :], unseen_factor[None, :])
                        total += _sigmoid(logit) * factor
        total += tl.where(is_seen, seen_offset[None, :], unseen_offset[None, :])
        # As in `BestClass`: from the first nan on no class is better.
        first_nan = tl.min(tl.where(total == total, class_count, classes), axis=0)
        usable = tl.where(classes < first_nan[None, :], total, float("-inf"))
        value, index = tl.max(usable, axis=0, return_indices=True)
        is_better = (value > best) & (has_nan == 0)
        label = tl.where(is_better, start + index, label)
        best = tl.where(is_better, value, best)
        has_nan |= (first_nan < class_count).to(tl.int32)
    place = row.to(tl.int64) * width + column
    tl.store(labels + place, label, mask=is_inside)
    tl.store(scores + place, tl.where(has_nan != 0, float("nan"), best), mask=is_inside)
    if HAS_TRUSTY:
        tl.store(trusty_map + place, trusty, mask=is_inside)
