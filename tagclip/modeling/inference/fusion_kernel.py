"""The Triton kernel of `tagclip.modeling.inference.triton_fusion`; importing it needs triton.

A program, one warp, makes some pixels of a row of the result, CLASSES classes at a time. For each
view it works out the scores of the canvas pixels around them, one per thread, summed over the
windows that hold them and the two rows that are blended; blends neighbours; and keeps the best
class so far. Logits are gathered where they are, from the cache: 4 KiB per class and window. What
does not depend on the class (places, weights, trusty map) is worked out once for CLASSES of them.

The means over windows and views and the gate are linear in the sigmoids, so they are one factor
and one offset: `gated = score * factor + offset`.
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
_LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _source(position, size_in, size_out):
    """Where pixels of a resized axis are read: the two pixels, and how far on to the second.

    In whole numbers: as float32, (position + 1/2) * size_in / size_out - 1/2 is off by 3e-5 at the
    600th pixel.
    """
    numerator = tl.maximum((2 * position + 1) * size_in - size_out, 0)
    index = numerator // (2 * size_out)
    way = (numerator - index * (2 * size_out)).to(tl.float32) / (2 * size_out).to(tl.float32)
    # Positions beyond the end read the last pixel, for no use.
    return tl.minimum(index, size_in - 1), tl.minimum(index + 1, size_in - 1), way


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
def _coverage(origins, start, end, length, pixel):
    """How many of some windows hold each pixel."""
    count = tl.zeros_like(pixel)
    for i in range(start, end):
        origin = tl.load(origins + i).to(tl.int32)
        count += ((origin <= pixel) & (pixel < origin + length)).to(tl.int32)
    return count


@triton.jit
def _blend(base, a, b, c, d, weight_a, weight_b, weight_c, weight_d):
    """Weighted sum of four logits."""
    above = tl.load(base + a) * weight_a + tl.load(base + b) * weight_b
    return above + tl.load(base + c) * weight_c + tl.load(base + d) * weight_d


@triton.jit
def _neighbours(block, before, after, way):
    """Blend of two columns of a block."""
    return tl.gather(block, before, 1) * (1 - way) + tl.gather(block, after, 1) * way


# Values that differ from image to image or gate to gate: triton would compile anew for some.
_VARYING = (
    *("view_count", "class_count", "height", "width", "tile_width"),
    *("gates_seen", "gates_unseen", "weighs_bias", "adds", "sign"),
)


@triton.jit(do_not_specialize=_VARYING)
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
    tile_width,
    gates_seen,
    gates_unseen,
    weighs_bias,
    adds,
    sign,
    bias,
    weight_of_map,
    lowest,
    HAS_TRUSTY: tl.constexpr,
    CLASSES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write labels, their scores and the trusty map of tile_width pixels of a row.

    Args:
        labels: (height, width) int32.
        scores: (height, width) float32; nan where any class has nan.
        trusty_map: (height, width) float32; anything without HAS_TRUSTY.
        seen_mask: (class_count,) bool.
        table: int64: `FIELDS` of every view, then the origins of the windows, to which its fields
            ``tops`` and ``lefts`` point.
        view_count, class_count, height, width: sizes, below 2^15 but for the classes.
        tile_width: at most COLUMNS, and so that no view has more canvas pixels around them.
        gates_seen, gates_unseen, weighs_bias, adds: 0 or 1: w multiplies seen scores, 1 - w unseen
            ones, w the bias, the map is added to unseen ones.
        sign: -1 if the trusty token was trained on unseen pixels, 1 otherwise.
        bias, weight_of_map, lowest: ``bias``, half of ``scale`` and the lower clip of `Gate`.
        HAS_TRUSTY: whether there are trusty logits.
    """
    place = tl.arange(0, COLUMNS)
    row, first_column = tl.program_id(0), tl.program_id(1) * tile_width
    last_column = tl.minimum(first_column + tile_width, width) - 1
    is_inside = first_column + place <= last_column
    column = tl.minimum(first_column + place, last_column)
    label = tl.zeros([COLUMNS], tl.int32)
    best = tl.full([COLUMNS], float("-inf"), tl.float32)
    has_nan = tl.zeros([COLUMNS], tl.int32)
    trusty = tl.zeros([1, COLUMNS], tl.float32)
    for start in range(0, class_count, CLASSES):
        # Beyond the last class there is the last one again, which is not looked at.
        lane = tl.minimum(tl.arange(0, CLASSES), class_count - 1 - start)[:, None]
        # A number: predicates of so many classes would be packed and unpacked all the time.
        seen = tl.load(seen_mask + start + lane).to(tl.float32)
        total = tl.zeros([CLASSES, COLUMNS], tl.float32)
        trusty = tl.zeros([1, COLUMNS], tl.float32)
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
            class_logits += start * class_stride
            class_offsets = lane * class_stride.to(tl.int32)
            # A mirrored view answers for column c at width - 1 - c.
            is_mirrored = tl.load(entry + 17) != 0
            first_read = tl.where(is_mirrored, width - 1 - last_column, first_column)
            last_read = tl.where(is_mirrored, width - 1 - first_column, last_column)
            # The columns of the canvas that are read, and the windows that hold any of them.
            x_first, _, _ = _source(first_read, canvas_width, width)
            _, x_last, _ = _source(last_read, canvas_width, width)
            x = tl.minimum(x_first + place, x_last)
            left_start, left_end = _touching(lefts, left_count, window_width, x_first, x_last)
            count_across = _coverage(lefts, left_start, left_end, window_width, x)
            y_first, y_second, y_way = _source(row, canvas_height, height)
            block = tl.zeros([CLASSES, COLUMNS], tl.float32)
            block_trusty = tl.zeros([COLUMNS], tl.float32)
            seen_offset = tl.zeros([COLUMNS], tl.float32)
            unseen_offset = tl.zeros([COLUMNS], tl.float32)
            for tap in range(tl.where(canvas_height == height, 1, 2)):
                y = tl.where(tap == 0, y_first, y_second)
                top_start, top_end = _touching(tops, top_count, window_height, y, y)
                count = (count_across * ((top_end - top_start) * view_count)).to(tl.float32)
                tap_weight = tl.where(tap == 0, 1 - y_way, y_way) / count
                for i in range(top_start, top_end):
                    top = tl.load(tops + i).to(tl.int32)
                    up, down, row_way = _source(y - top, rows, padded_height)
                    up, down = up * columns, down * columns
                    # exp(-x) is exp2(x * -1 / ln 2): the weights of the logits bring the factor.
                    row_way = row_way * (-1 / _LN_2)
                    for j in range(left_start, left_end):
                        left = tl.load(lefts + j).to(tl.int32)
                        is_held = (left <= x) & (x < left + window_width)
                        weight = tl.where(is_held, tap_weight, 0.0)
                        before, after, column_way = _source(x - left, columns, padded_width)
                        a, b, c, d = up + before, up + after, down + before, down + after
                        weight_d = row_way * column_way
                        weight_c = row_way - weight_d
                        weight_b = (-1 / _LN_2) * column_way - weight_d
                        weight_a = (-1 / _LN_2) * (1 - column_way) - weight_c
                        window = i * left_count + j
                        seen_factor, unseen_factor, bias_factor = weight, weight, weight
                        if HAS_TRUSTY:
                            base = trusty_logits + window * trusty_stride
                            power = sign * _blend(
                                base, a, b, c, d, weight_a, weight_b, weight_c, weight_d
                            )
                            w = tl.where(is_held, 1 / (1 + tl.exp2(power)), 0.0)
                            block_trusty += weight * w
                            seen_factor *= tl.where(gates_seen != 0, w, 1.0)
                            unseen_factor *= tl.where(gates_unseen != 0, 1 - w, 1.0)
                            bias_factor *= tl.where(weighs_bias != 0, w, 1.0)
                            # log((1 - w) / w). Comparisons leave nan as it is.
                            added = tl.where(is_held, power * _LN_2, 0.0)
                            added = tl.where(added < lowest, lowest, added)
                            added = weight_of_map * tl.where(added > _CLIP, _CLIP, added)
                            unseen_offset += weight * tl.where(adds != 0, added, 0.0)
                        seen_offset -= bias * bias_factor
                        base = class_logits + window * window_stride + class_offsets
                        power = _blend(
                            base,
                            a[None, :],
                            b[None, :],
                            c[None, :],
                            d[None, :],
                            weight_a[None, :],
                            weight_b[None, :],
                            weight_c[None, :],
                            weight_d[None, :],
                        )
                        # Not a factor of 0: it hands on what another window has of nan.
                        score = tl.where(is_held[None, :], 1 / (1 + tl.exp2(power)), 0.0)
                        more = seen_factor - unseen_factor
                        block += score * (unseen_factor[None, :] + seen * more[None, :])
            more = seen_offset - unseen_offset
            block += unseen_offset[None, :] + seen * more[None, :]
            block_trusty = block_trusty[None, :]
            if (canvas_width != width) | is_mirrored:
                read = tl.where(is_mirrored, width - 1 - column, column)
                before, after, way = _source(read, canvas_width, width)
                before, after = (before - x_first)[None, :], (after - x_first)[None, :]
                if HAS_TRUSTY:
                    block_trusty = _neighbours(block_trusty, before, after, way[None, :])
                before = tl.broadcast_to(before, [CLASSES, COLUMNS])
                after = tl.broadcast_to(after, [CLASSES, COLUMNS])
                block = _neighbours(block, before, after, way[None, :])
            total += block
            trusty += block_trusty
        # As in `BestClass`: from the first nan on no class is better.
        classes = start + tl.arange(0, CLASSES)[:, None]
        first_nan = tl.min(tl.where(total == total, class_count, classes), axis=0)
        usable = tl.where(classes < first_nan[None, :], total, float("-inf"))
        value, index = tl.max(usable, axis=0, return_indices=True)
        is_better = (value > best) & (has_nan == 0)
        label = tl.where(is_better, start + index, label)
        best = tl.where(is_better, value, best)
        has_nan |= (first_nan < class_count).to(tl.int32)
    pixel = row.to(tl.int64) * width + column
    tl.store(labels + pixel, label, mask=is_inside)
    tl.store(scores + pixel, tl.where(has_nan != 0, float("nan"), best), mask=is_inside)
    if HAS_TRUSTY:
        tl.store(trusty_map + pixel[None, :], trusty, mask=is_inside[None, :])
