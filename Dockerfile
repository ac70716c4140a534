# The command tagclip, on CPUs and NVIDIA GPUs. This file has been linted, not built.
#
#   docker build -t tagclip .
#   docker run --rm tagclip --help
#   docker run --rm --gpus all --shm-size 8g -v /data:/data:ro -v "$PWD/output:/workspace/output" \
#       -e DETECTRON2_DATASETS=/data tagclip train --config-file CONFIG
#
# On GPUs, inference's Triton kernel and MODEL.COMPILE need compilers (apt-get install g++), which are
# left out here: without them torch's operations take the kernel's place, which the log says.
FROM python:3.11.7-slim-bookworm AS build

WORKDIR /source
COPY requirements.txt ./
RUN grep "^setuptools==" requirements.txt >build.txt && python -m pip install --no-cache-dir -r build.txt
COPY setup.py pyproject.toml README.md LICENSE THIRD_PARTY.md ./
COPY tagclip tagclip
COPY projects projects
COPY configs configs
COPY datasets datasets
COPY tools tools
RUN python -m pip wheel --no-deps --no-build-isolation --wheel-dir /wheel .


FROM python:3.11.7-slim-bookworm

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

WORKDIR /workspace

# The slow layer first: it changes only with the pinned packages.
COPY requirements.txt /tmp/
RUN python -m pip install -r /tmp/requirements.txt
COPY --from=build /wheel /tmp/wheel
RUN python -m pip install --no-deps /tmp/wheel/*.whl \
    && tagclip setup-detectron2 \
    && useradd --create-home --uid 1000 tagclip \
    && install --directory --owner tagclip datasets output \
    && chown tagclip .

# Files in a mounted folder belong to uid 1000; another user: docker run --user "$(id -u)".
USER 1000

ENTRYPOINT ["tagclip"]
CMD ["--help"]
