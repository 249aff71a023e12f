"""A server on localhost for the page, its library and one exported student."""

from __future__ import annotations

import json
import shutil
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from scripts.web.packages import VENDOR_FILES
from storage.disk.safe_paths import safe_join
from storage.errors import CacheError, ConfigError
from storage.text.beginnings import beginning_ids
from storage.text.ends import stated_ids
from student.model.tokenizers import load_tokenizer
from student.run_record import BEGINNING, read_run

_PAGE = Path(__file__).parent
_PAGE_FILES = {"/": "index.html", "/page.js": "page.js", "/worker.js": "worker.js", "/style.css": "style.css"}
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".wasm": "application/wasm",
    ".json": "application/json",
}
_HEADERS = {
    # The browser sends requests to this server only, whatever the page or its library try.
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data:; script-src 'self' 'wasm-unsafe-eval' blob:; "
        "connect-src 'self' blob:; worker-src 'self' blob:"
    ),
    # A browser lets a page use several threads only with these two headers.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
# transformers.js's name for the precision of each file that an export may hold.
_DTYPES = {"model.onnx": "fp32", "model_quantized.onnx": "q8"}


def make_server(exported: Path, packages: Path, port: int) -> ThreadingHTTPServer:
    """Return a server that is bound to the port and does not serve yet.

    Raises ConfigError when the directory holds no ONNX export or the port cannot be used.
    """
    facts = json.dumps(describe(exported)).encode()

    class Handler(_Handler):
        def find(self, address: str) -> Path | bytes | None:
            if address == "/student.json":
                return facts
            return _find_file(address, exported, packages)

    try:
        return ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--port {port}: {getattr(error, 'strerror', error)}; name another, or 0 for any") from error


def describe(exported: Path) -> dict[str, Any]:
    """Return what the page shows about a student: name, dtype as transformers.js names it, bytes and context length.

    Raises ConfigError when the directory holds no ONNX export.
    """
    found = [name for name in _DTYPES if (exported / "onnx" / name).is_file()]
    if not found:
        expected = "expected a directory that teachonce-student export --format onnx made"
        raise ConfigError(f"{exported}: holds no onnx/model.onnx or onnx/model_quantized.onnx; {expected}")
    config = json.loads((exported / "config.json").read_text())
    return {
        "name": exported.resolve().name,
        "dtype": _DTYPES[found[0]],
        "bytes": (exported / "onnx" / found[0]).stat().st_size,
        "context_length": config.get("n_positions") or config.get("max_position_embeddings"),
        **_framing(exported, config),
    }


def _framing(exported: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Return the ids that begin texts and those that end them. Without run.json, the tokenizer says how they begin."""
    tokenizer, run = load_tokenizer(exported), read_run(exported)
    generation = exported / "generation_config.json"
    stated = [config, json.loads(generation.read_text()) if generation.is_file() else {}]
    ends = {tokenizer.eos_token_id, *(i for named in stated for i in stated_ids(named.get("eos_token_id")))} - {None}
    beginning = run.get(BEGINNING, []) if run else list(beginning_ids(tokenizer, "auto"))
    return {"beginning_ids": beginning, "end_ids": sorted(ends)}


def _find_file(address: str, exported: Path, packages: Path) -> Path | None:
    top, _, rest = address.removeprefix("/").partition("/")
    if address in _PAGE_FILES:
        return _PAGE / _PAGE_FILES[address]
    if top == "vendor" and rest in VENDOR_FILES:
        return packages / "node_modules" / VENDOR_FILES[rest]
    if top == "student":
        try:
            return safe_join(exported, rest, "request")
        except CacheError:
            return None
    return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def find(self, address: str) -> Path | bytes | None:
        """Return the file or the bytes at an address of this server, None when there is nothing."""
        raise NotImplementedError

    def do_GET(self) -> None:
        """Send the file at the requested address, or status 404."""
        address = unquote(urlsplit(self.path).path)
        found = self.find(address)
        if isinstance(found, bytes):
            self._head(HTTPStatus.OK, len(found), _TYPES[".json"])
            self._body(found)
        elif found is None or not found.is_file():
            self._head(HTTPStatus.NOT_FOUND, 0, "text/plain")
        else:
            suffix = found.suffix
            self._head(HTTPStatus.OK, found.stat().st_size, _TYPES.get(suffix, "application/octet-stream"))
            self._body(found)

    do_HEAD = do_GET

    def _head(self, status: HTTPStatus, num_bytes: int, content_type: str) -> None:
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(num_bytes))
        self.end_headers()

    def _body(self, content: Path | bytes) -> None:
        if self.command == "HEAD":
            return
        if isinstance(content, bytes):
            self.wfile.write(content)
        else:
            with content.open("rb") as file:
                shutil.copyfileobj(file, self.wfile)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing, so that the page's address stays visible in the terminal."""
