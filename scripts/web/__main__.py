"""Serve a page in which an exported ONNX student completes text in the browser.

    teachonce-student export my-student --format onnx --quantize int8 --out exported --cache cache
    python -m scripts.web exported

npm installs the library (transformers.js with onnxruntime-web) once, in the versions of package-lock.json. After that
nothing is fetched from elsewhere: this server sends page, library and model, and a Content-Security-Policy makes the
browser refuse other addresses.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, arg

from scripts.web.packages import default_packages_dir, install_packages
from scripts.web.server import make_server
from storage.command import run_command


def serve(
    exported: Annotated[Positional[Path], arg(metavar="EXPORTED")], port: int = 8000, packages: Path | None = None
) -> int:
    """Serve a page in which an exported student completes text.

    Args:
        exported: Directory that teachonce-student export --format onnx wrote.
        port: Port on localhost. 0 takes any free port.
        packages: Directory of npm's packages, made if missing. None uses teachonce/ in the user's cache directory.
    """
    server = make_server(exported, install_packages(packages or default_packages_dir()), port)
    host, bound = server.server_address[:2]
    print(f"open http://{host!s}:{bound} in a browser; Ctrl-C stops", file=sys.stderr, flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        return 0
    finally:
        server.server_close()
    return 0


if __name__ == "__main__":
    sys.argv[0] = "python -m scripts.web"
    run_command(lambda: tyro.cli(serve, description=__doc__))
