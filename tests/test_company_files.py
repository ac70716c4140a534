"""What a company asks for: licences, citation, changes, a container; they agree with the code."""

from __future__ import annotations

import fnmatch
import json
import os
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

import tagclip

REQUIREMENTS = (
    "requirements.txt",
    "requirements-dev.txt",
    "requirements-bulk.txt",
    "requirements-demo.txt",
    "requirements-docs.txt",
)


def pinned(repository: Path) -> dict[str, str]:
    """Package -> version of all requirements files."""
    lines = [line for name in REQUIREMENTS for line in (repository / name).read_text().splitlines()]
    pairs = [re.fullmatch(r"([\w.-]+)==(\S+)", line) for line in lines if line[:1] not in ("", "#")]
    assert all(pairs)
    return {pair[1]: pair[2] for pair in pairs}


def test_every_package_has_its_licence(repository: Path) -> None:
    """With the pinned version; one that is installed states the same licence."""
    text = (repository / "THIRD_PARTY.md").read_text()
    rows = re.findall(r"^\| ([\w.-]+) \| (\d\S*) \| .+ \|$", text, re.MULTILINE)
    assert sorted(rows) == sorted(pinned(repository).items())
    stated = dict(re.findall(r"^\| ([\w.-]+) \| \d\S* \| (.+) \|$", text, re.MULTILINE))
    compared = 0
    for name, licence in stated.items():
        try:
            about = metadata.metadata(name)
        except metadata.PackageNotFoundError:
            continue
        if expression := about.get("License-Expression"):
            assert licence.startswith(expression), name
            compared += 1
    assert compared >= 10


def test_what_is_not_in_the_registry_is_described(repository: Path) -> None:
    text = (repository / "THIRD_PARTY.md").read_text()
    tool = (repository / "tools" / "install_detectron2.py").read_text()
    name, version = re.search(r'SDIST = "(.+)==(.+)"', tool).groups()
    assert f"`{name}` {version}" in text and re.search('SHA256 = "(.+)"', tool)[1] in text
    edits = json.loads((repository / "tools" / "detectron2_edits.json").read_text())
    assert f"{len(edits)} edits" in text
    templates = json.loads((repository / "tagclip/modeling/clip/prompt_templates.json").read_text())
    for part in ("OpenAI", "open_clip", "PASCAL VOC", "PASCAL Context", "COCO-Stuff", "ADE20K"):
        assert part in text
    assert all(f"`{name}`" in text for name in templates)


def test_every_class_list_is_covered(repository: Path) -> None:
    text = (repository / "THIRD_PARTY.md").read_text()
    patterns = [Path(name).name for name in re.findall(r"`([\w/*]+\.json)`", text)]
    for path in (repository / "tagclip" / "data" / "datasets" / "vocabularies").glob("*.json"):
        assert any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns), path.name
        assert json.loads(path.read_text())["source"]


def test_the_citation_is_valid_and_current(repository: Path) -> None:
    """The fields that CFF 1.2.0 requires, of the software and of the paper."""
    tree = yaml.safe_load((repository / "CITATION.cff").read_text())
    assert tree["cff-version"] == "1.2.0" and tree["message"] and tree["type"] == "software"
    assert tree["version"] == tagclip.__version__ == setup_version(repository)
    assert tree["license"] == "Apache-2.0"
    (paper,) = tree["references"]
    for part in (tree, paper):
        assert part["title"] and part["authors"]
        assert all(is_author(author) for author in part["authors"])
    assert paper["type"] == "article" and paper["year"] == 2023
    assert paper["url"] == "https://arxiv.org/abs/2304.07547"
    assert paper["url"] in (repository / "README.md").read_text()


def is_author(author: dict[str, Any]) -> bool:
    return set(author) in ({"name"}, {"family-names", "given-names"}) and all(author.values())


def setup_version(repository: Path) -> str:
    """The version that setup.py reads."""
    assert "version=version()," in (repository / "setup.py").read_text()
    text = (repository / "tagclip" / "__init__.py").read_text()
    return re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)[1]


def test_the_changelog_has_the_current_version(repository: Path) -> None:
    text = (repository / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## \[(.+?)\]", text, re.MULTILINE)
    assert tagclip.__version__ in versions[:2]
    for tool in re.findall(r"`(tools/\w+\.py)", text):
        assert (repository / tool).is_file(), tool


@pytest.fixture
def instructions(repository: Path) -> list[tuple[str, str]]:
    """(keyword, arguments) of the Dockerfile."""
    text = re.sub(r"^#.*\n", "", (repository / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]


def test_the_container_copies_what_is_there(
    repository: Path, instructions: list[tuple[str, str]]
) -> None:
    """And .dockerignore lets it through, but no data and no results."""
    sources = [
        source
        for keyword, arguments in instructions
        if keyword == "COPY" and "--from=" not in arguments
        for source in arguments.split()[:-1]
    ]
    rules = (repository / ".dockerignore").read_text().splitlines()
    assert "*" in rules and "datasets/*" in rules
    for source in sources:
        assert (repository / source).exists(), source
        assert f"!{source.split('/')[0]}" in rules, source
    tops = {path.name for path in repository.iterdir()}
    assert {rule[1:] for rule in rules if re.fullmatch(r"![\w.-]+", rule)} <= tops
    # What setup.py reads and installs.
    assert {"setup.py", "pyproject.toml", "README.md", "tagclip", "projects"} <= set(sources)


def test_the_container_has_a_pinned_base_and_no_root(
    repository: Path, instructions: list[tuple[str, str]]
) -> None:
    keywords = [keyword for keyword, _ in instructions]
    (base,) = {arguments.split()[0] for keyword, arguments in instructions if keyword == "FROM"}
    minor = re.fullmatch(r"python:(3\.\d+)\.\d+-slim-\w+", base)[1]
    assert minor in supported_pythons(repository)
    assert (
        f'target-version = "py{minor.replace(".", "")}"'
        in (repository / "pyproject.toml").read_text()
    )
    users = [arguments for keyword, arguments in instructions if keyword == "USER"]
    assert users and users[-1] not in ("root", "0")
    assert keywords.index("USER") > max(i for i, k in enumerate(keywords) if k in ("RUN", "COPY"))
    commands = " ".join(arguments for keyword, arguments in instructions if keyword == "RUN")
    for part in (
        "requirements.txt",
        "pip wheel --no-deps",
        "pip install --no-deps",
        "tagclip setup",
    ):
        assert part in commands
    # Versions stand in the requirements only.
    assert not re.search(r"pip install [^&]*[\w-]+[=<>]=", commands)
    (entry,) = (json.loads(a) for k, a in instructions if k == "ENTRYPOINT")
    assert f'"{entry[0]} = ' in (repository / "setup.py").read_text()


def supported_pythons(repository: Path) -> list[str]:
    setup = (repository / "setup.py").read_text()
    low, high = re.search(r'python_requires=">=3\.(\d+),<3\.(\d+)"', setup).groups()
    return [f"3.{minor}" for minor in range(int(low), int(high))]


def test_ci_runs_on_every_python(repository: Path) -> None:
    workflow = yaml.safe_load((repository / ".github" / "workflows" / "ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    pythons = supported_pythons(repository)
    assert job["strategy"]["matrix"] == {"python": pythons}
    # What the Makefile makes the environment with.
    assert job["env"] == {"PYTHON": "python${{ matrix.python }}"}
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands == [".ci/run", ".ci/nightly"]
    assert all(os.access(repository / command, os.X_OK) for command in commands)
    assert "(3, 11) <= sys.version_info[:2] <= (3, 13)" in (repository / "Makefile").read_text()
    assert (pythons[0], pythons[-1]) == ("3.11", "3.13")
