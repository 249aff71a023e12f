"""Serve the files of a directory over HTTP with ranges, as object stores do, to this machine alone.

Run as a process beside what is measured: python -m scripts.support.file_server DIRECTORY
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, *arguments: Any, directory: Path) -> None:
        self._directory = directory
        super().__init__(*arguments)

    def do_HEAD(self) -> None:
        """Answer with the size of a file."""
        self._send(is_body_wanted=False)

    def do_GET(self) -> None:
        """Answer with a file, or with the range that is asked for."""
        self._send(is_body_wanted=True)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def _send(self, *, is_body_wanted: bool) -> None:
        path = self._directory / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        start, end = 0, path.stat().st_size
        asked = self.headers.get("Range")
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last) + 1, end)
        self.send_response(HTTPStatus.PARTIAL_CONTENT if asked else HTTPStatus.OK)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if is_body_wanted:
            with path.open("rb") as file:
                self.connection.sendfile(file, start, end - start)


@contextlib.contextmanager
def serving(directory: Path) -> Iterator[str]:
    """Serve a directory from another process; yield its URL."""
    command = [sys.executable, "-m", __name__, str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def main() -> None:
    """Print the URL and serve until the process is ended."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=Path(sys.argv[1]))) as server:
        print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
