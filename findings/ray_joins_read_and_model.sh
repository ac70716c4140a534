#!/usr/bin/env bash
# Expected: a function that reads images runs as tasks of its own, beside the actors that have a
# model. Without GPUs both ask for one CPU, and Ray Data joins them: the actor reads for itself, one
# image after the other, however many CPUs are idle. num_gpus=1 keeps them apart.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment ray==2.60.0 pandas==3.1.1 pyarrow==26.0.1 numpy==2.4.6
export RAY_USAGE_STATS_ENABLED=0 RAY_BACKEND_LOG_LEVEL=fatal
"$PYTHON" - <<'PYTHON'
import logging
import os

import ray

quiet = {"include_dashboard": False, "logging_level": "error", "log_to_driver": False}
ray.init("local", num_cpus=3, num_gpus=1, **quiet)
logging.disable()
ray.data.DataContext.get_current().enable_progress_bars = False


def read(batch):
    return {**batch, "reader": [os.getpid()]}


class Model:
    def __call__(self, batch):
        return {**batch, "model": [os.getpid()]}


def same_process(**resources):
    images = ray.data.from_items([{"image": i} for i in range(6)], override_num_blocks=6)
    rows = images.map_batches(read, batch_size=1).map_batches(
        Model, batch_size=1, compute=ray.data.ActorPoolStrategy(size=1), **resources
    )
    return {row["reader"] == row["model"] for row in rows.take_all()}


found = {name: same_process(**kind) for name, kind in (("CPU", {}), ("GPU", {"num_gpus": 1}))}
for name, same in found.items():
    print(f"model on a {name}: read by the process of the model: {same}")
assert found == {"CPU": {True}, "GPU": {False}}
PYTHON
