"""A hub on this machine: the part of its HTTP interface that uploads and downloads use."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

TOKEN = "hf_of_the_test"


@dataclass
class Hub:
    """Repositories by name, with the files of their only branch.

    Args:
        address: Where the hub is served.
        repositories: Content of each file, by repository and path.
        private: Private repositories.
        large: Content of uploaded large files, by SHA-256.
        requests: Method and path of each request.
    """

    address: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    large: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def revision(self, name: str) -> str:
        """Return a digest of the files of a repository, in the form of a commit."""
        digest = hashlib.sha1()
        for path, content in sorted(self.repositories[name].items()):
            digest.update(f"{path}\n".encode() + content)
        return digest.hexdigest()


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Serve an empty hub on a free port for the body of a ``with`` statement."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        parts = self._parts()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer(401, {"error": "Invalid username or password."})
        elif parts == ["api", "validate-yaml"]:  # the metadata of the model card
            self._answer(200, {"errors": [], "warnings": []})
        elif parts == ["api", "repos", "create"]:
            self._create(json.loads(body))
        elif parts[:2] == ["api", "models"] and parts[4] == "preupload":
            paths = [each["path"] for each in json.loads(body)["files"]]
            modes = [{"path": p, "uploadMode": _mode(p), "shouldIgnore": False} for p in paths]
            self._answer(200, {"files": modes})
        elif parts[-2:] == ["objects", "batch"]:
            self._batch(json.loads(body))
        elif parts[:2] == ["api", "models"] and parts[4] == "commit":
            self._commit(f"{parts[2]}/{parts[3]}", body)
        else:
            self._answer(404, {"error": f"no {self.path}"})

    def do_PUT(self) -> None:
        parts = self._parts()
        content = self.rfile.read(int(self.headers["Content-Length"]))
        assert hashlib.sha256(content).hexdigest() == parts[-1]
        self.hub.large[parts[-1]] = content
        self._answer(200, {})

    def do_GET(self) -> None:
        parts = self._parts()
        if parts[:2] == ["api", "models"] and len(parts) == 4:
            self._describe(f"{parts[2]}/{parts[3]}", "main")
        elif parts[:2] == ["api", "models"] and len(parts) == 6 and parts[4] == "revision":
            self._describe(f"{parts[2]}/{parts[3]}", parts[5])
        elif parts[:2] == ["api", "models"] and len(parts) == 6 and parts[4] == "tree":
            self._tree(f"{parts[2]}/{parts[3]}", parts[5])
        elif len(parts) > 4 and parts[2] == "resolve":
            self._file(f"{parts[0]}/{parts[1]}", parts[3], "/".join(parts[4:]))
        else:
            self._missing("EntryNotFound")

    def do_HEAD(self) -> None:
        self.do_GET()

    def _create(self, content: dict[str, Any]) -> None:
        name = f"{content['organization']}/{content['name']}"
        if name in self.hub.repositories:
            self._answer(409, {"error": "exists", "url": f"{self.hub.address}/{name}"})
            return
        self.hub.repositories[name] = {".gitattributes": b"*.safetensors filter=lfs\n"}
        if content.get("visibility") == "private" or content.get("private"):
            self.hub.private.add(name)
        self._answer(200, {"url": f"{self.hub.address}/{name}"})

    def _batch(self, content: dict[str, Any]) -> None:
        upload = [
            {
                "oid": each["oid"],
                "size": each["size"],
                "actions": {"upload": {"href": f"{self.hub.address}/large/{each['oid']}"}},
            }
            for each in content["objects"]
        ]
        self._answer(200, {"transfer": "basic", "objects": upload})

    def _commit(self, name: str, body: bytes) -> None:
        files = self.hub.repositories[name]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
        revision = self.hub.revision(name)
        url = f"{self.hub.address}/{name}/commit/{revision}"
        self._answer(200, {"commitUrl": url, "commitOid": revision, "pullRequestUrl": None})

    def _describe(self, name: str, revision: str) -> None:
        if not self._found(name, revision):
            return
        siblings = [{"rfilename": path} for path in self.hub.repositories[name]]
        about = {"id": name, "sha": self.hub.revision(name), "private": name in self.hub.private}
        about |= {"siblings": siblings, "tags": [], "downloads": 0, "likes": 0}
        self._answer(200, about)

    def _tree(self, name: str, revision: str) -> None:
        if self._found(name, revision):
            files = self.hub.repositories[name].items()
            entries = [
                {"type": "file", "path": p, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                for p, c in files
            ]
            self._answer(200, entries)

    def _file(self, name: str, revision: str, path: str) -> None:
        if not self._found(name, revision):
            return
        content = self.hub.repositories[name].get(path)
        if content is None:
            self._missing("EntryNotFound")
            return
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        headers |= {"X-Repo-Commit": self.hub.revision(name), "Accept-Ranges": "bytes"}
        self._send(200, content, "application/octet-stream", headers)

    def _found(self, name: str, revision: str) -> bool:
        if name not in self.hub.repositories:
            self._missing("RepoNotFound")
        elif revision not in ("main", self.hub.revision(name)):
            self._missing("RevisionNotFound")
        else:
            return True
        return False

    def _missing(self, code: str) -> None:
        self._send(404, b'{"error": "not found"}', "application/json", {"X-Error-Code": code})

    def _answer(self, status: int, content: dict[str, Any] | list[dict[str, Any]]) -> None:
        self._send(status, json.dumps(content).encode(), "application/json", {})

    def _send(self, status: int, content: bytes, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        headers |= {"Content-Type": kind, "Content-Length": str(len(content))}
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _parts(self) -> list[str]:
        self.hub.requests.append(f"{self.command} {self.path}")
        return urlsplit(self.path).path.strip("/").split("/")


def _mode(path: str) -> str:
    return "lfs" if path.endswith(".safetensors") else "regular"
