# Environment for training, evaluation and the tools, on CPUs and NVIDIA GPUs. It has been linted, not built.
# The steps are those of `make env`, without a virtual environment and what development needs.
#
#   docker build -t tagclip .
#   docker run --rm tagclip tools/train_net.py --help
#   docker run --rm --gpus all --shm-size 8g -v /data:/data:ro -v "$PWD/output:/opt/tagclip/output" \
#       -e DETECTRON2_DATASETS=/data tagclip tools/train_net.py --config-file CONFIG
#
# On GPUs, inference's Triton kernel and MODEL.COMPILE need compilers (apt-get install g++), which are
# left out here: without them torch's operations take the kernel's place, which the log says.
FROM python:3.11.7-slim-bookworm

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

WORKDIR /opt/tagclip

# The slow layers first: they change only with the pinned packages.
COPY requirements.txt ./
RUN python -m pip install -r requirements.txt
COPY tools/install_detectron2.py tools/detectron2_edits.json tools/
RUN python tools/install_detectron2.py

COPY setup.py pyproject.toml README.md LICENSE THIRD_PARTY.md CITATION.cff ./
COPY tagclip tagclip
COPY projects projects
COPY configs configs
COPY datasets datasets
COPY tools tools
RUN python -m pip install --no-deps --no-build-isolation --editable . \
    && useradd --create-home --uid 1000 tagclip \
    && install --directory --owner tagclip output \
    && chown tagclip datasets

# Files in a mounted folder belong to uid 1000; another user: docker run --user "$(id -u)".
USER 1000

ENTRYPOINT ["python"]
CMD ["tools/train_net.py", "--help"]
