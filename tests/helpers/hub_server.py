"""A hub on this machine: the part of the Hugging Face hub's API that its client calls here."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from helpers.paths import REPOSITORY
from huggingface_hub import constants

# As on the hub, what ends so goes to the large file storage.
_LARGE = (".safetensors", ".gz")


@dataclass
class Hub:
    """What the server holds and what it was asked.

    Attributes:
        address: of the server, HF_ENDPOINT.
        commits: repository -> commits, the last one is main: (sha, file -> content).
        visibility: repository -> as it was made.
        requests: method and path of each.
        ranges: first byte of each download.
        cut: names of files whose next download breaks off after half of its bytes.
        refuse: status of every answer to a writing request, if not 0.
    """

    address: str = ""
    commits: dict[str, list[tuple[str, dict[str, bytes]]]] = field(default_factory=dict)
    visibility: dict[str, str | None] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    ranges: list[int] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    refuse: int = 0
    large: dict[str, bytes] = field(default_factory=dict)

    def commit(self, repository: str, files: dict[str, bytes]) -> str:
        """Add a commit with some files to a repository; return its name."""
        before = self.commits.setdefault(repository, [])
        tree = (before[-1][1] if before else {}) | files
        content = b"".join(name.encode() + data for name, data in sorted(tree.items()))
        sha = hashlib.sha1(content + bytes([len(before)])).hexdigest()
        before.append((sha, tree))
        return sha

    def find(self, repository: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit that a revision names."""
        commits = self.commits.get(repository, [])
        named = [commit for commit in commits if revision in (commit[0], "main")]
        return named[-1] if named else None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, content: object) -> None:
        self._answer(200, json.dumps(content).encode(), Content_Type="application/json")

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _log(self) -> list[str]:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        return path.strip("/").split("/")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self._log()
        if parts[:2] == ["api", "models"]:
            commit = self.hub.find("/".join(parts[2:4]), "main")
            if commit is None:
                return self._answer(404, X_Error_Code="RepoNotFound")
            files = [{"rfilename": name} for name in commit[1]]
            return self._json({"id": "/".join(parts[2:4]), "sha": commit[0], "siblings": files})
        if parts[2:3] != ["resolve"]:
            return self._answer(404)
        repository, revision, name = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        if repository not in self.hub.commits:
            return self._answer(404, X_Error_Code="RepoNotFound")
        commit = self.hub.find(repository, revision)
        if commit is None:
            return self._answer(404, X_Error_Code="RevisionNotFound")
        sha, tree = commit
        if name not in tree:
            return self._answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
        return self._file(tree[name], name, sha)

    def _file(self, data: bytes, name: str, sha: str) -> None:
        digest = hashlib.sha256 if name.endswith(_LARGE) else hashlib.sha1
        begin = int((self.headers.get("Range") or "bytes=0-")[6:].split("-")[0])
        headers = {
            "X_Repo_Commit": sha,
            "ETag": f'"{digest(data).hexdigest()}"',
            "Content_Length": str(len(data) - begin),
        }
        if begin:
            headers["Content_Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        body = data[begin:]
        if self.command == "GET":
            self.hub.ranges.append(begin)
        if self.command == "GET" and name in self.hub.cut:
            self.hub.cut.remove(name)
            body, self.close_connection = body[: len(body) // 2], True
        self._answer(206 if begin else 200, body, **headers)

    def do_POST(self) -> None:
        parts, body = self._log(), self._read()
        if self.hub.refuse:
            self._answer(self.hub.refuse)
        elif parts[4:5] == ["commit"]:
            self._commit("/".join(parts[2:4]), body)
        else:
            self._prepare(parts, json.loads(body))

    def _prepare(self, parts: list[str], tree: dict[str, Any]) -> None:
        """Everything before a commit."""
        if parts == ["api", "repos", "create"]:
            name = f"{tree['organization']}/{tree['name']}"
            self.hub.visibility[name] = tree.get("visibility")
            if name not in self.hub.commits:
                self.hub.commit(name, {".gitattributes": b""})
            return self._json({"url": f"{self.hub.address}/{name}", "name": name})
        if parts == ["api", "validate-yaml"]:
            return self._json({"errors": [], "warnings": []})
        if parts[4:5] == ["preupload"]:
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(_LARGE) else "regular",
                    "shouldIgnore": False,
                }
                for file in tree["files"]
            ]
            return self._json({"files": files})
        if parts[2:] == ["info", "lfs", "objects", "batch"]:
            objects = [
                {**each, "actions": {"upload": {"href": f"{self.hub.address}/lfs/{each['oid']}"}}}
                for each in tree["objects"]
            ]
            return self._json({"transfer": "basic", "objects": objects})
        return self._answer(404)

    def _commit(self, name: str, body: bytes) -> None:
        files = {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
        sha = self.hub.commit(name, files)
        address = f"{self.hub.address}/{name}/commit/{sha}"
        self._json({"success": True, "commitOid": sha, "commitUrl": address})

    def do_PUT(self) -> None:
        parts, body = self._log(), self._read()
        if hashlib.sha256(body).hexdigest() != parts[1]:
            return self._answer(400)
        self.hub.large[parts[1]] = body
        return self._answer(200)


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Serve a hub without repositories; what was uploaded is in it as long as the block runs."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def use_hub(patch: pytest.MonkeyPatch, address: str, cache: Path, *, offline: bool = False) -> None:
    """Point the hub's client in this process, which has read its environment, at a server.

    Args:
        patch: takes it back.
        address: of the server.
        cache: folder of the cache.
        offline: HF_HUB_OFFLINE.
    """
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    patch.setattr(constants, "ENDPOINT", address)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_HUB_OFFLINE", offline)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)


def run_with_hub(code: str, hub: str, cache: Path, *words: str | Path) -> str:
    """Run Python in a process of its own with the settings that a user has; return what it prints.

    Args:
        code: a program that finds ``words`` in ``sys.argv``.
        hub: address of the server, HF_ENDPOINT.
        cache: HF_HOME.
        words: arguments.
    """
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "HF_ENDPOINT": hub,
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "hf_test",
    }
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, words)]
    result = subprocess.run(
        command, env=environment, cwd=cache.parent, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()
