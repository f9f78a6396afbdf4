"""A stand-in of the Hugging Face Hub on loopback: the endpoints that its own library calls to make a repository, to upload through
pre-signed places, and to fetch; and the ways in which a hub can be out of order."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import urllib.parse
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_" + "t" * 34


@dataclass
class Repository:
    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Files by commit, the newest last."""

    def commit(self, files: dict[str, bytes]) -> str:
        told = json.dumps([(name, hashlib.sha256(content).hexdigest()) for name, content in sorted(files.items())])
        oid = hashlib.sha1(f"{len(self.commits)} {told}".encode()).hexdigest()
        self.commits[oid] = files
        return oid

    def find(self, revision: str) -> str | None:
        if revision == "main":
            return list(self.commits)[-1] if self.commits else None
        return revision if revision in self.commits else None


class Hub:
    """What it holds, whom it knows, what was asked of it, and what is wrong with it."""

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        self.broken: set[str] = set()
        """Of "busy" (all is answered 503), "truncated" (large files end early), "other bytes" (they are changed on the way), "round and
        round" (every answer leads to itself), "nonsense" (all is answered with a page, as by a network whose user has to log
        in)."""
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.store = f"http://localhost:{self.server.server_port}"
        """Of large files, on another host, to which no token may go."""

    def put(self, name: str, files: dict[str, bytes], private: bool = False) -> str:
        """A repository as somebody else has filled it; its commit."""
        return self.repositories.setdefault(name, Repository(private)).commit(files)


@contextmanager
def running():
    """A hub, until the block ends."""
    hub = Hub()
    thread = threading.Thread(target=hub.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._get()

    def do_GET(self):
        self._get()

    def _get(self):
        path = self._path()
        parts = path.strip("/").split("/")
        if "busy" in self.hub.broken:
            return self._answer(503, {"error": "busy"})
        if "round and round" in self.hub.broken:
            return self._send(302, b"", {"Location": self.hub.url + self.path})
        if "nonsense" in self.hub.broken:
            return self._send(200, b"<html>Log in</html>", {"Content-Type": "text/html"})
        if path.startswith("/objects/"):
            assert "Authorization" not in self.headers
            content = self.hub.objects[parts[1]]
            if "other bytes" in self.hub.broken:
                content = content[:-1] + bytes([content[-1] ^ 1])
            if "truncated" in self.hub.broken:
                content = content[: len(content) // 2]
            return self._send(200, content)
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not self._known()):
            return self._answer(
                404 if self._known() else 401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
            )
        revision = "main"
        if parts[0] == "api" and len(parts) > 5:
            revision = urllib.parse.unquote(parts[5])
        elif parts[0] != "api":
            revision = urllib.parse.unquote(parts[3])
        commit = repository.find(revision)
        if commit is None:
            return self._answer(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        files = repository.commits[commit]
        if parts[0] != "api":
            return self._resolve(files, commit, "/".join(parts[4:]))
        if len(parts) > 4 and parts[4] == "tree":
            return self._answer(200, [_entry(path, content) for path, content in sorted(files.items())])
        siblings = [{"rfilename": path} for path in files]
        return self._answer(200, {"id": name, "sha": commit, "private": repository.private, "siblings": siblings})

    def _resolve(self, files: dict[str, bytes], commit: str, path: str):
        if path not in files:
            return self._answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        content, headers = files[path], {"X-Repo-Commit": commit}
        if not _is_large(path):
            return self._send(200, content, {**headers, "ETag": f'"{_git_hash(content)}"'})
        oid = hashlib.sha256(content).hexdigest()
        self.hub.objects[oid] = content
        headers |= {
            "X-Linked-ETag": f'"{oid}"',
            "X-Linked-Size": str(len(content)),
            "Location": f"{self.hub.store}/objects/{oid}",
        }
        return self._send(302, b"", headers)

    def do_POST(self):
        path, body = self._path(), self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = path.strip("/").split("/")
        if "busy" in self.hub.broken:
            return self._answer(503, {"error": "busy"})
        if path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if not self._known():
            return self._answer(
                401, {"error": "Invalid username or password."}, {"X-Error-Message": "Invalid username or password."}
            )
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if asked["organization"] != "someone":
                return self._answer(403, {"error": "no right"}, {"X-Error-Message": "You don't have the rights"})
            if name in self.hub.repositories:
                return self._answer(
                    409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"}
                )
            private = asked.get("private") or asked.get("visibility") == "private"
            self.hub.repositories[name] = Repository(private)
            self.hub.repositories[name].commit({".gitattributes": b"*.safetensors filter=lfs\n"})
            return self._answer(200, {"url": f"{self.hub.url}/{name}", "name": name})
        if path.endswith(".git/info/lfs/objects/batch"):
            actions = {"upload": {"href": f"{self.hub.store}/upload/%s", "header": {}}}
            objects = [
                {**each, "actions": json.loads(json.dumps(actions) % each["oid"])}
                for each in json.loads(body)["objects"]
            ]
            return self._answer(200, {"transfer": "basic", "objects": objects})
        repository = self.hub.repositories["/".join(parts[2:4])]
        files = dict(repository.commits[repository.find("main")])
        if parts[4] == "preupload":
            modes = [
                {
                    "path": each["path"],
                    "uploadMode": "lfs" if _is_large(each["path"]) else "regular",
                    "shouldIgnore": False,
                    "oid": _oid(each["path"], files.get(each["path"])),
                }
                for each in json.loads(body)["files"]
            ]
            return self._answer(200, {"files": modes})
        assert parts[4] == "commit", path
        for line in body.decode().splitlines():
            told = json.loads(line)
            value = told["value"]
            if told["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif told["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif told["key"] == "deletedFile":
                del files[value["path"]]
        oid = repository.commit(files)
        return self._answer(200, {"commitUrl": f"{self.hub.url}/{'/'.join(parts[2:4])}/commit/{oid}", "commitOid": oid})

    def do_PUT(self):
        oid, content = self._path().rpartition("/")[2], self._body()
        assert "Authorization" not in self.headers
        assert hashlib.sha256(content).hexdigest() == oid
        self.hub.objects[oid] = content
        self._send(200, b"")

    def _body(self) -> bytes:
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        content = b""  # in chunks
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _path(self) -> str:
        path = self.path.partition("?")[0]
        self.hub.asked.append((self.command, path))
        return path

    def _known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _answer(self, code: int, content, headers: dict[str, str] | None = None):
        self._send(code, json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _send(self, code: int, content: bytes, headers: dict[str, str] | None = None):
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _is_large(path: str) -> bool:
    return path.endswith((".safetensors", ".bin"))


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _oid(path: str, content: bytes | None) -> str | None:
    if content is None:
        return None
    return hashlib.sha256(content).hexdigest() if _is_large(path) else _git_hash(content)


def _entry(path: str, content: bytes) -> dict:
    entry = {"type": "file", "path": path, "size": len(content), "oid": _git_hash(content)}
    if _is_large(path):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return entry
