"""The best class of every pixel on a CPU: small tiles, and in each the classes that can win there.

Between the centres of four patches a logit lies between theirs, so a few numbers per class bound
its score on a whole block of pixels. A class whose upper bound stays below another's lower bound
cannot win there, and nothing of it is computed. What is left passes through upsampling, sigmoid,
gate, windows, views and resize in tiles that stay in the cache. No result depends on the tiles.

In reading order: the result, one view of the image, geometry along one axis, best classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tagclip.modeling.inference.gate import Gate
from tagclip.modeling.inference.windows import ViewLogits
from tagclip.utils.stepping import pause_point

__all__ = ["TiledFusion"]

# Pixels of the result: side of a block, for which classes are ruled out.
_BLOCK = 16
# Rows and columns of blocks in a tile.
_TILE = (5, 8)
# With fewer classes planes of whole classes are quicker: ruling out takes longer than it saves.
_FEWEST = 48
# Where more than this share of all scores is left, they are quicker, too.
_MOST_LEFT = 0.5
# Floats in the planes of a tile, some classes at a time: 2 MiB, the caches of two cores.
_TILE_FLOATS = 2**19
# Times a difference of two scores, the greater at least `_TINY`, more than the number of classes.
_FAR = 1e38
_TINY = 1e-20
# A computed score may pass its bound by rounding, by 3e-7 at most where it was measured.
_ROUNDING = 1e-5
# Vectors of 32 floats for 64 threads: torch computes what comes after the last whole vector of a
# thread with other functions, which round differently.
_ALIGNED = 2048


@dataclass(frozen=True)
class TiledFusion:
    """Labels, scores and trusty map of one image.

    Attributes:
        views: see `ScoreFusion`.
        seen_mask: (K,) bool.
        gate: see `Gate`.
        trusty_target: ``seen``, ``novel`` or None, see `ScoreFusion`.
        tile: rows and columns of blocks in a tile; they change the time only.
    """

    views: tuple[ViewLogits, ...]
    seen_mask: Tensor
    gate: Gate
    trusty_target: str | None
    tile: tuple[int, int] = _TILE

    @staticmethod
    def fits(views: Sequence[ViewLogits]) -> bool:
        """Whether all is finite, on a CPU, with many classes and whole pixels per patch."""
        if views[0].class_logits.shape[1] < _FEWEST:
            return False
        for view in views:
            for side, patches in zip(view.padded_size, view.class_logits.shape[-2:], strict=True):
                if side % patches or side < 2 * patches:
                    return False
            for logits in (view.class_logits, view.trusty_logits):
                if logits is not None and not (logits.is_cpu and logits.isfinite().all()):
                    return False
        return True

    @torch.autocast("cpu", enabled=False)
    def best(
        self, size: tuple[int, int], most_left: float = _MOST_LEFT
    ) -> tuple[Tensor, Tensor, Tensor | None] | None:
        """Return (H, W) int64 labels, float32 scores and float32 trusty map, None without a token.

        Args:
            size: (H, W) of the result in pixels.
            most_left: the result is None if bounds leave a greater share of all scores.
        """
        views = [_PlacedView(view, size, self.trusty_target, self.gate) for view in self.views]
        tiles = list(self._tiles(views, size))
        if sum(count for *_, count in tiles) > most_left * len(self.seen_mask) * size[0] * size[1]:
            return None
        labels, scores = torch.empty(size, dtype=torch.int64), torch.empty(size)
        trusty = None if self.views[0].trusty_logits is None else torch.empty(size)
        for rows, columns, classes, _ in tiles:
            pause_point()
            found = self._tile(views, rows, columns, classes)
            labels[rows, columns], scores[rows, columns] = found[:2]
            if trusty is not None:
                trusty[rows, columns] = found[2]
        return labels, scores, trusty

    def _tiles(
        self, views: Sequence[_PlacedView], size: tuple[int, int]
    ) -> Iterator[tuple[slice, slice, Tensor, int]]:
        """Yield rows and columns of every tile, the classes that can win there, their scores."""
        tall, wide = (blocks * _BLOCK for blocks in self.tile)
        for top in range(0, size[0], tall):
            pause_point()
            rows = slice(top, min(top + tall, size[0]))
            can_win = self._can_win(views, rows, size[1]).view(torch.uint8).amax(dim=1)
            for left in range(0, size[1], wide):
                columns = slice(left, min(left + wide, size[1]))
                blocks = can_win[:, left // _BLOCK : left // _BLOCK + self.tile[1]]
                classes = blocks.amax(dim=1).nonzero()[:, 0]
                pixels = (rows.stop - rows.start) * (columns.stop - columns.start)
                yield rows, columns, classes, len(classes) * pixels

    def _can_win(self, views: Sequence[_PlacedView], rows: slice, width: int) -> Tensor:
        """(K, rows of blocks, columns of blocks) bool.

        The score of a pixel is a mean over windows and views, so it lies between its bounds in
        any of them.
        """
        shape = (-(-(rows.stop - rows.start) // _BLOCK), -(-width // _BLOCK))
        upper = torch.full((len(self.seen_mask), *shape), -torch.inf)
        lower = torch.full_like(upper, torch.inf)
        for view in views:
            for blocks, least, most in view.bounds(rows, width, self.seen_mask):
                torch.minimum(lower[blocks], least, out=lower[blocks])
                torch.maximum(upper[blocks], most, out=upper[blocks])
        return upper >= lower.amax(dim=0) - _ROUNDING

    def _tile(
        self, views: Sequence[_PlacedView], rows: slice, columns: slice, classes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Labels, scores and trusty map (zeros without a token) of one tile."""
        area = max(view.pixels(rows, columns) for view in views)
        step = max(1, _TILE_FLOATS // area - 4)
        sides: list[tuple[Tensor, Tensor] | None] = [None, None]
        for part in classes.split(step):
            seen = self.seen_mask[part]
            part, count = torch.cat([part[seen], part[~seen]]), int(seen.sum())
            planes = _mean([view.planes(part, count, rows, columns) for view in views])
            # Passes over planes want them in the order of memory, whichever that is.
            turned = not planes.is_contiguous()
            planes = planes.mT.contiguous() if turned else planes
            *offsets, trusty = planes[len(part) :]
            for place, side in enumerate((slice(count), slice(count, None))):
                if len(part[side]):
                    found, before = _first_best(planes[: len(part)][side], part[side]), sides[place]
                    sides[place] = found if before is None else _better(before, found)
        # Not before all parts are compared: the sum rounds, and what parts there are would tell.
        ends = [
            (side[0], side[1] + offset)
            for side, offset in zip(sides, offsets, strict=True)
            if side is not None
        ]
        found = (*(ends[0] if len(ends) == 1 else _better(*ends)), trusty)
        return tuple(plane.mT for plane in found) if turned else found


class _PlacedView:
    """Logits of one view, and where the pixels of the result lie in it."""

    def __init__(
        self, view: ViewLogits, size: tuple[int, int], trusty_target: str | None, gate: Gate
    ) -> None:
        grid, cells = view.grid, view.class_logits.shape[-2:]
        self._logits, self._trusty, self._gate = view.class_logits, view.trusty_logits, gate
        if trusty_target == "novel" and self._trusty is not None:
            self._trusty = -self._trusty
        self._rows = _Axis(
            grid.height, size[0], grid.tops, grid.window_height, cells[0], view.padded_size[0]
        )
        self._columns = _Axis(
            grid.width,
            size[1],
            grid.lefts,
            grid.window_width,
            cells[1],
            view.padded_size[1],
            view.mirrored,
        )

    def pixels(self, rows: slice, columns: slice) -> int:
        """How many pixels of the view a tile of the result covers."""
        (top, bottom), (left, right) = self._rows.span(rows), self._columns.span(columns)
        return (bottom - top) * (right - left)

    def bounds(
        self, rows: slice, width: int, seen_mask: Tensor
    ) -> Iterator[tuple[tuple[slice, ...], Tensor, Tensor]]:
        """Yield per window its blocks, and least and greatest scores (K, rows, columns) in them."""
        for i in range(len(self._rows.origins)):
            down = self._rows.cells_of_blocks(i, rows)
            for j in range(len(self._columns.origins) if down else 0):
                across = self._columns.cells_of_blocks(j, slice(0, width))
                if across:
                    yield (
                        (slice(None), down[0], across[0]),
                        *self._window_bounds(self._window(i, j), down, across, seen_mask),
                    )

    def _window_bounds(
        self, window: int, down: _Cells, across: _Cells, seen_mask: Tensor
    ) -> list[Tensor]:
        """Least and greatest scores (K, rows, columns) of one window in its blocks."""

        def ends(logits: Tensor) -> list[Tensor]:
            found = []
            for pick in (torch.minimum, torch.maximum):
                pooled = _pooled(logits, 1, *down[1:], pick)
                found.append(_pooled(pooled, 2, *across[1:], pick).sigmoid_())
            return found

        trusty = [None] if self._trusty is None else [w[0] for w in ends(self._trusty[window])]
        bounds = ends(self._logits[window])
        for seen in (True, False):
            side = seen_mask == seen
            terms = [self._gate.terms(end, seen) for end in trusty]
            for bound, pick in zip(bounds, (torch.minimum, torch.maximum), strict=True):
                # Monotonous in the trusty map for any score, so extreme at one of its ends.
                gated = [bound[side] * factor + offset for factor, offset in terms]
                bound[side] = pick(gated[0], gated[-1])
        return bounds

    def planes(self, classes: Tensor, seen: int, rows: slice, columns: slice) -> Tensor:
        """Return what the scores of a tile are made of, at the size of the result.

        Args:
            classes: (n,) int64, the seen ones first.
            seen: how many of them are.
            rows: of the result.
            columns: of the result.

        Returns:
            (n + 3, H, W) float32: factors times sigmoid of each class, the offset of seen and of
            unseen classes (see `Gate.terms`), the trusty map.
        """
        (top, bottom), (left, right) = self._rows.span(rows), self._columns.span(columns)
        total = torch.zeros(len(classes) + 3, bottom - top, right - left)
        share = self._rows.share[top:bottom, None] * self._columns.share[left:right]
        for i in self._rows.windows(top, bottom):
            for j in self._columns.windows(left, right):
                down, up = self._rows.inside(i, top, bottom)
                across, over = self._columns.inside(j, left, right)
                part = total[:, down, across]
                scores = self._sigmoids(self._window(i, j), classes, up, over)
                self._add(part, scores, share[down, across], seen)
        return self._columns.resize(self._rows.resize(total, rows).mT, columns).mT

    def _add(self, total: Tensor, sigmoids: Tensor, share: Tensor, seen: int) -> None:
        """Add one window's part to (n + 3, h, w): (n + 1, h, w) sigmoids, the token's last."""
        count = len(total) - 3
        trusty = None if self._trusty is None else sigmoids[count]
        for place, side in enumerate((slice(seen), slice(seen, count))):
            factor, offset = self._gate.terms(trusty, seen=place == 0)
            total[side].addcmul_(sigmoids[:count][side], factor * share)
            total[count + place] += offset * share
        if trusty is not None:
            total[count + 2].addcmul_(trusty, share)

    def _sigmoids(self, window: int, classes: Tensor, rows: slice, columns: slice) -> Tensor:
        """Upsampled sigmoids (n + 1, h, w) of some pixels of a window, the trusty token's last."""
        above, below, place = self._rows.lines(rows)
        before, behind, weight = self._columns.points(columns)
        first, last = int(above[0]), int(below[-1]) + 1
        logits = self._logits[window, :, first:last].index_select(0, classes)
        if self._trusty is not None:
            logits = torch.cat([logits, self._trusty[window, :, first:last]])
        wide = logits.index_select(2, before).lerp_(logits.index_select(2, behind), weight)
        shape = (len(wide), len(above), self._rows.factor, wide.shape[2])
        length = torch.Size(shape).numel()
        flat = wide.new_empty(-(-length // _ALIGNED) * _ALIGNED)
        flat[length:] = 0
        full = flat[:length].view(shape)
        torch.lerp(
            wide.index_select(1, above - first)[:, :, None],
            wide.index_select(1, below - first)[:, :, None],
            self._rows.steps[:, None],
            out=full,
        )
        flat.sigmoid_()
        return full.flatten(1, 2)[:, place]

    def _window(self, i: int, j: int) -> int:
        return i * len(self._columns.origins) + j


# Blocks that a window touches, and the first and the last row (or column) of patches that the
# pixels of each lie between.
_Cells = tuple[slice, Tensor, Tensor]


@dataclass(frozen=True)
class _Axis:
    """Rows or columns: of the result, of the view, of its windows and of their patches.

    Attributes:
        length: pixels of the view.
        result: pixels of the result, between two of the view each (bilinear, align_corners False).
        origins: first pixel of every window.
        window: pixels of a window.
        cells: patches of a window.
        padded: pixels of so many patches.
        mirrored: whether the result begins at the end of the view.
    """

    length: int
    result: int
    origins: tuple[int, ...]
    window: int
    cells: int
    padded: int
    mirrored: bool = False

    @property
    def factor(self) -> int:
        """Pixels per patch."""
        return self.padded // self.cells

    @cached_property
    def _taps(self) -> tuple[Tensor, Tensor, Tensor]:
        """The two pixels of the view beside each pixel of the result, weight of the second."""
        places = torch.arange(self.result, dtype=torch.float64) + 0.5
        places = (places * self.length / self.result - 0.5).clamp_(min=0)
        first = places.long().clamp_(max=self.length - 1)
        step = int(self.length != self.result)
        second = (first + step).clamp_(max=self.length - 1)
        taps = (first, second, (places - first).float())
        return tuple(tap.flip(0) for tap in taps) if self.mirrored else taps

    @cached_property
    def steps(self) -> Tensor:
        """(factor,): how far each pixel between two centres of patches is on its way."""
        return (torch.arange(self.factor) + (self.factor // 2 + 0.5)) / self.factor - 0.5

    @cached_property
    def share(self) -> Tensor:
        """(length,): one over the number of windows at each pixel of the view."""
        count = torch.zeros(self.length)
        for origin in self.origins:
            count[origin : origin + self.window] += 1
        return 1 / count

    def span(self, pixels: slice) -> tuple[int, int]:
        """First and, exclusive, last pixel of the view that pixels of the result lie between."""
        first, second, _ = (tap[pixels] for tap in self._taps)
        return int(first.amin()), int(second.amax()) + 1

    def windows(self, start: int, stop: int) -> list[int]:
        """Return the windows that cover some of these pixels of the view."""
        return [
            number
            for number, origin in enumerate(self.origins)
            if origin < stop and origin + self.window > start
        ]

    def inside(self, number: int, start: int, stop: int) -> tuple[slice, slice]:
        """Return the part that a window covers, counted from ``start`` and in the window."""
        origin = self.origins[number]
        first, last = max(start, origin), min(stop, origin + self.window)
        return slice(first - start, last - start), slice(first - origin, last - origin)

    def _cell(self, pixel: Tensor) -> Tensor:
        """Number of the patch whose centre is at or before a pixel of a window, from -1."""
        return torch.div(2 * pixel + 1 - self.factor, 2 * self.factor, rounding_mode="floor")

    def _between(self, cell: Tensor) -> tuple[Tensor, Tensor]:
        """That patch and the next one; beyond the ends the last ones go on."""
        return cell.clamp(min=0), (cell + 1).clamp(max=self.cells - 1)

    def lines(self, pixels: slice) -> tuple[Tensor, Tensor, slice]:
        """Cover pixels of a window with stretches of `factor` pixels between two patches.

        Returns:
            The patches before and behind each stretch, and where the pixels are in them.
        """
        ends = self._cell(torch.tensor([pixels.start, pixels.stop - 1]))
        cells = torch.arange(int(ends[0]), int(ends[1]) + 1)
        start = pixels.start - (int(ends[0]) * self.factor + self.factor // 2)
        return *self._between(cells), slice(start, start + pixels.stop - pixels.start)

    def points(self, pixels: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Return the patches before and behind each pixel of a window, weight of the second."""
        pixel = torch.arange(pixels.start, pixels.stop)
        cell = self._cell(pixel)
        weight = self.steps[pixel - cell * self.factor - self.factor // 2]
        return *self._between(cell), weight

    def cells_of_blocks(self, number: int, pixels: slice) -> _Cells | None:
        """Return the patches around each block of some pixels of the result that a window touches.

        None if it touches none.
        """
        edges = torch.arange(pixels.start, pixels.stop, _BLOCK)
        ends = (edges + _BLOCK - 1).clamp_(max=pixels.stop - 1)
        first, second, _ = self._taps
        low = torch.minimum(first[edges], first[ends]) - self.origins[number]
        high = torch.maximum(second[edges], second[ends]) - self.origins[number]
        touched = ((high >= 0) & (low < self.window)).nonzero()[:, 0]
        if not len(touched):
            return None
        blocks = slice(int(touched[0]), int(touched[-1]) + 1)
        low, high = low[blocks].clamp(min=0), high[blocks].clamp(max=self.window - 1)
        return blocks, self._between(self._cell(low))[0], self._between(self._cell(high))[1]

    def resize(self, planes: Tensor, pixels: slice) -> Tensor:
        """(n, pixels of `span`, m) -> (n, ``pixels`` of the result, m)."""
        if self.length == self.result and not self.mirrored:
            return planes
        first, second, weight = (tap[pixels] for tap in self._taps)
        start = first.amin()
        # The other axis comes last in memory, so that whole lines are copied.
        planes = planes.contiguous()
        resized = planes.index_select(1, first - start)
        if self.length == self.result:
            return resized
        return resized.lerp_(planes.index_select(1, second - start), weight[:, None])


def _pooled(
    planes: Tensor, dim: int, first: Tensor, last: Tensor, pick: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Least or greatest of the entries ``first`` to ``last`` along a dimension."""
    pooled = planes.index_select(dim, first)
    for step in range(1, int((last - first).amax()) + 1):
        pooled = pick(pooled, planes.index_select(dim, torch.minimum(first + step, last)))
    return pooled


def _first_best(planes: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Labels and scores of the best of (n, H, W) planes, which are overwritten.

    Ties go to the class that comes first.
    """
    best, count = planes.amax(dim=0), len(planes)
    if count == 1:
        return classes.expand(best.shape), best
    planes.sub_(best)
    if best.amin() < _TINY:
        planes.sign_()
    # What is 0 now is best; the first of those has the greatest number, the others fall far below.
    numbers = torch.arange(count, 0, -1.0)[:, None, None]
    torch.add(numbers, planes, alpha=_FAR, out=planes)
    return classes[count - planes.amax(dim=0).long()], best


def _mean(planes: Sequence[Tensor]) -> Tensor:
    """Mean of new tensors, which are overwritten."""
    total = planes[0]
    for other in planes[1:]:
        total += other
    return total.div_(len(planes)) if len(planes) > 1 else total


def _better(one: tuple[Tensor, Tensor], two: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Labels and scores of the better of two; ties go to the smaller label."""
    (labels, scores), (others, rivals) = one, two
    chosen = torch.where(rivals > scores, others, labels)
    chosen = torch.where(rivals == scores, torch.minimum(labels, others), chosen)
    return chosen, torch.maximum(scores, rivals)
