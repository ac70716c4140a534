#!/usr/bin/env bash
# Expected: Image.open reads the header alone, so that asking for the size of a picture takes a few
# megabytes whatever the size is, of WebP as of the other formats. Here opening a WebP reserves 8
# bytes for each of its pixels (two canvases of its animation decoder) before anything is decoded,
# of a still picture without transparency, too: 183 MiB for 24 million pixels, where JPEG, PNG and
# AVIF need none. Under a limit of memory that fits the others, a whole WebP is called one that no
# decoder can be made for, in the words that a damaged one gets.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment Pillow==12.3.0
"$PYTHON" - <<'PYTHON'
import os
import resource
from pathlib import Path

from PIL import Image

WIDTH, HEIGHT = 6000, 4000
MIB = 1 << 20


def opens(path: str, mebibytes: int) -> bool:
    """Whether a process with so much more address space can open it and see its size."""
    child = os.fork()
    if not child:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + mebibytes * MIB
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        try:
            with Image.open(path) as image:
                os._exit(image.size != (WIDTH, HEIGHT))
        except OSError as error:
            print(f"{path} with {mebibytes} MiB: {error}", flush=True)
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


colour = Image.new("RGB", (WIDTH, HEIGHT), (200, 30, 40))
for name in ("a.jpg", "a.png", "a.avif", "a.webp"):
    colour.save(name, quality=50)
    # The process that all others are forked from has the plugin.
    Image.open(name).close()
del colour
for name in ("a.jpg", "a.png", "a.avif", "a.webp"):
    results = [opens(name, mebibytes) for mebibytes in (32, 128, 256)]
    print(f"{name} with 32, 128 and 256 MiB more: {results}", flush=True)
    assert results[2] and results[0] == (name != "a.webp"), name
PYTHON
