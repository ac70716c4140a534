#!/usr/bin/env bash
# Expected: an image that ends its actor (a lack of memory, a crash in a decoder) ends the run after
# some attempts, as an exception does at once. Ray Data starts the actor again for as long as one
# likes to wait, without a word.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment ray==2.60.0 pandas==3.1.1 pyarrow==26.0.1 numpy==2.4.6
export RAY_USAGE_STATS_ENABLED=0 RAY_BACKEND_LOG_LEVEL=fatal
code=0
timeout 90 "$PYTHON" - 2>stderr <<'PYTHON' || code=$?
import logging
import os
from pathlib import Path

import ray

ray.init("local", num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
logging.disable()
ray.data.DataContext.get_current().enable_progress_bars = False
starts = Path("starts").absolute()


class Model:
    def __call__(self, batch):
        with starts.open("a") as file:
            file.write("x")
        os._exit(1)


images = ray.data.from_items([{"image": 0}])
images.map_batches(Model, compute=ray.data.ActorPoolStrategy(size=1)).take_all()
PYTHON
count=$(wc -c <starts)
echo "exit code $code (124: it was still at it); the image was begun $count times in 90 seconds"
[ "$code" = 124 ] && [ "$count" -gt 5 ]
