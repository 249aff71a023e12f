"""Servers on loopback that fail as networks fail: a proxy before a real S3 API (moto), and a small Hugging Face Hub."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import socket
import struct
import threading
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FAULTS = ("503", "short body", "reset", "flipped bit", "slow first byte", "lost acknowledgement")

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect", "host"}
_SLOW_S = 0.05


@dataclass
class Rule:
    """A fault for the next `times` requests that fit."""

    fault: str
    method: str
    part_of_path: str
    times: int


@dataclass
class Answer:
    """What a server sends back."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class FaultyServer:
    """Answers requests as `respond` says, and spoils the answers as its rules say."""

    def __init__(self) -> None:
        self.rules: list[Rule] = []
        self.requests: list[tuple[str, str]] = []
        self.faults: list[str] = []
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def respond(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        raise NotImplementedError

    def inject(self, fault: str, *, method: str = "", part_of_path: str = "", times: int = 1) -> None:
        """Spoil the next `times` requests whose method and path fit."""
        self.rules.append(Rule(fault, method, part_of_path, times))

    def count(self, method: str, part_of_path: str = "") -> int:
        """Requests that came since the last reset."""
        return sum(m == method and part_of_path in path for m, path in self.requests)

    def reset(self) -> None:
        """Forget requests and rules."""
        self.rules, self.requests, self.faults = [], [], []

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def draw(self, method: str, path: str) -> str | None:
        """The fault of a request, which is noted."""
        with self._lock:
            self.requests.append((method, path))
            for rule in self.rules:
                if rule.times and rule.method in ("", method) and rule.part_of_path in path:
                    rule.times -= 1
                    self.faults.append(rule.fault)
                    return rule.fault
        return None


class _Handler(BaseHTTPRequestHandler):
    owner: FaultyServer
    protocol_version = "HTTP/1.1"

    def handle_any(self) -> None:
        body = self._read_body()
        fault = self.owner.draw(self.command, self.path)
        if fault == "503":
            self._send(
                Answer(503, {"Content-Type": "application/xml"}, b"<Error><Code>ServiceUnavailable</Code></Error>")
            )
            return
        answer = self.owner.respond(self.command, self.path, dict(self.headers.items()), body)
        match fault:
            case "lost acknowledgement":
                self._hang_up()
            case "slow first byte":
                time.sleep(_SLOW_S)
                self._send(answer)
            case "short body" | "reset" if len(answer.body) > 1:
                self._send(answer, num_sent=len(answer.body) // 2)
                self._hang_up(abruptly=fault == "reset")
            case "reset" | "short body":
                self._hang_up(abruptly=fault == "reset")
            case "flipped bit" if answer.body:
                spoiled = bytearray(answer.body)
                spoiled[len(spoiled) // 2] ^= 4
                self._send(Answer(answer.status, answer.headers, bytes(spoiled)))
            case _:
                self._send(answer)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        pieces = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(pieces)

    def _send(self, answer: Answer, num_sent: int | None = None) -> None:
        with contextlib.suppress(ConnectionError):  # a client may leave early
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            if self.command != "HEAD":
                self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body[:num_sent])
                self.wfile.flush()

    def _hang_up(self, *, abruptly: bool = False) -> None:
        self.close_connection = True
        if abruptly:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with contextlib.suppress(OSError):
            self.connection.close() if abruptly else self.connection.shutdown(socket.SHUT_RDWR)


class S3Proxy(FaultyServer):
    """Passes everything on to an S3 API, one write at a time: moto looks whether a name is taken, and then puts."""

    def __init__(self, host: str, port: int) -> None:
        self._upstream = (host, port)
        self._writing = threading.Lock()
        self._num_buckets = 0
        super().__init__()

    def make_bucket(self) -> str:
        """The name of a new bucket."""
        self._num_buckets += 1
        name = f"bucket-{self._num_buckets}"
        answer = self.respond("PUT", f"/{name}", {}, b"")
        assert answer.status == 200, answer.body
        return name

    def respond(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        connection = http.client.HTTPConnection(*self._upstream, timeout=30)
        with contextlib.ExitStack() as stack:
            stack.callback(connection.close)
            if method not in ("GET", "HEAD"):
                stack.enter_context(self._writing)
            passed = {name: value for name, value in headers.items() if name.lower() not in _HOP_BY_HOP}
            connection.request(method, path, body if body or method in ("PUT", "POST") else None, passed)
            response = connection.getresponse()
            keep_length = method == "HEAD"
            answered = {
                name: value
                for name, value in response.getheaders()
                if name.lower() not in _HOP_BY_HOP or (keep_length and name.lower() == "content-length")
            }
            return Answer(response.status, answered, response.read())


class FakeHub(FaultyServer):
    """As much of the Hub's API as reading a dataset repository and committing to it takes."""

    def __init__(self, repo_id: str = "owner/name") -> None:
        self.repo_id = repo_id
        self.files: dict[str, bytes] = {}
        self.commits: list[list[str]] = []
        self._large: dict[str, bytes] = {}
        super().__init__()

    def respond(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        path = urllib.parse.unquote(urllib.parse.urlsplit(path).path)
        api = f"/api/datasets/{self.repo_id}"
        if path == "/api/validate-yaml":
            return _json({"errors": [], "warnings": []})
        if path.startswith("/large/"):
            self._large[path.removeprefix("/large/")] = body
            return Answer(200)
        if path == f"/datasets/{self.repo_id}.git/info/lfs/objects/batch":
            return self._large_files(json.loads(body)["objects"])
        if path.startswith(f"{api}/preupload/"):
            return _json({"files": [self._upload_mode(file["path"]) for file in json.loads(body)["files"]]})
        if path.startswith(f"{api}/commit/"):
            return self._commit([json.loads(line) for line in body.splitlines()])
        if path.startswith(f"{api}/tree/main"):
            return self._list(path.removeprefix(f"{api}/tree/main").strip("/"))
        if path.startswith(f"{api}/revision/"):
            return _json({"id": self.repo_id, "sha": "0" * 40})
        if path.startswith(f"/datasets/{self.repo_id}/resolve/main/"):
            return self._resolve(method, path.partition("/resolve/main/")[2], headers)
        return Answer(404, {"X-Error-Code": "RepoNotFound"})

    def _upload_mode(self, path: str) -> dict[str, object]:
        held = self.files.get(path)
        is_large = path.endswith(".arrow")
        oid = None
        if held is not None:
            oid = hashlib.sha256(held).hexdigest() if is_large else _git_blob_id(held)
        return {"path": path, "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False, "oid": oid}

    def _large_files(self, objects: list[dict[str, object]]) -> Answer:
        wanted = [
            item | {"actions": {"upload": {"href": f"{self.url}/large/{item['oid']}"}}}
            for item in objects
        ]  # fmt: skip
        return _json({"transfer": "basic", "objects": wanted})

    def _commit(self, lines: list[dict[str, object]]) -> Answer:
        added: dict[str, bytes] = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                added[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                added[value["path"]] = self._large[value["oid"]]
        self.files |= added
        self.commits.append(sorted(added))
        commit = {"commitOid": "1" * 40, "commitUrl": f"{self.url}/datasets/{self.repo_id}/commit/{'1' * 40}"}
        return _json(commit | {"success": True, "hookOutput": ""})

    def _list(self, directory: str) -> Answer:
        inside = [
            path.removeprefix(f"{directory}/")
            for path in self.files
            if not directory or path.startswith(f"{directory}/")
        ]
        if not inside:
            return Answer(404, {"X-Error-Code": "EntryNotFound"})
        files = [{"type": "file", "path": name, "size": 0, "oid": ""} for name in inside if "/" not in name]
        folders = {name.partition("/")[0] for name in inside if "/" in name}
        return _json(files + [{"type": "directory", "path": name, "oid": ""} for name in sorted(folders)])

    def _resolve(self, method: str, path: str, headers: dict[str, str]) -> Answer:
        content = self.files.get(path)
        if content is None:
            return Answer(404, {"X-Error-Code": "EntryNotFound"})
        asked = {name.lower(): value for name, value in headers.items()}.get("range")
        if method == "HEAD":
            return Answer(200, {"Content-Length": str(len(content)), "ETag": '"0"', "X-Repo-Commit": "1" * 40})
        if asked is None or not path.endswith(".arrow"):
            return Answer(200, {}, content)
        start, _, end = asked.removeprefix("bytes=").partition("-")
        return Answer(206, {}, content[int(start) : int(end) + 1])


class FileServer(FaultyServer):
    """The files of a directory, and answers with other statuses for some of their paths."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.statuses = directory, dict[str, int]()
        super().__init__()

    def respond(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        file = self.directory / path.lstrip("/")
        status = self.statuses.get(path.lstrip("/"), 200 if file.is_file() else 404)
        if status != 200:
            return Answer(status)
        content = file.read_bytes()
        if method == "HEAD":
            return Answer(200, {"Content-Length": str(len(content)), "Accept-Ranges": "bytes"})
        asked = {name.lower(): value for name, value in headers.items()}.get("range")
        if asked is None:
            return Answer(200, {}, content)
        start, _, end = asked.removeprefix("bytes=").partition("-")
        return Answer(206, {}, content[int(start) : int(end) + 1])


@contextlib.contextmanager
def s3_proxy() -> Iterator[S3Proxy]:
    """A proxy before moto's server, both on loopback."""
    from moto.server import ThreadedMotoServer

    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    proxy = S3Proxy(*moto.get_host_and_port())
    try:
        yield proxy
    finally:
        proxy.stop()
        moto.stop()


def _json(content: object) -> Answer:
    return Answer(200, {"Content-Type": "application/json"}, json.dumps(content).encode())


def _git_blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
