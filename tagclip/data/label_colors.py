"""Stub, until the table of the core comes."""

import numpy as np


class ColorTable:
    def __init__(self, colors):
        self.table = np.full(1 << 24, -1, np.int32)
        for (r, g, b), v in colors.items():
            self.table[r << 16 | g << 8 | b] = v
        self.colors = list(colors)

    def __call__(self, pixels):
        p = pixels.astype(np.int32)
        return self.table[p[..., 0] << 16 | p[..., 1] << 8 | p[..., 2]]
