#!/usr/bin/env bash
# From a wheel to the first mask, in an environment and a folder that are both new:
#
#     tests/wheel.sh
#
# With PYTHON (default: python3). Takes minutes, the package registry, and 6 GB of disk until it ends.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PYTHON=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset PYTHONPATH
export PIP_DISABLE_PIP_VERSION_CHECK=1

# A copy: a build takes what an earlier one left in its source.
mkdir "$work"/{source,wheel,empty}
(cd "$root" && git ls-files -z | tar --null -T - -c) | tar -x -C "$work/source"
"$PYTHON" -m venv "$work/venv"
export PATH="$work/venv/bin:$PATH"
python -m pip wheel --quiet --no-deps --wheel-dir "$work/wheel" "$work/source"
python -m pip install --quiet "$work"/wheel/*.whl

cd "$work/empty"
tagclip --help
tagclip setup-detectron2
tagclip setup-detectron2 | grep "nothing to do"
tagclip minibench
tagclip segment --vocab "green board, blue fence" datasets/minibench/images/test/000004.png
ls -l segmented/*.png
