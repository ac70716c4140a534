"""tagclip bulk that ends itself with SIGKILL when so many images are done: MOMENT ARGUMENTS."""

from __future__ import annotations

import os
import signal
import sys

from tagclip.bulk.progress import Progress
from tagclip.tools import bulk


def main(moment: int, arguments: list[str]) -> None:
    """Run, until the images that are counted reach the moment."""
    count_images, total = Progress.images, 0

    def images(self: Progress, count: int) -> None:
        nonlocal total
        total += count
        if total >= moment:
            os.kill(os.getpid(), signal.SIGKILL)
        count_images(self, count)

    Progress.images = images
    bulk.main(bulk.parse_args(arguments))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
