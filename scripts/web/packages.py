"""The page's JavaScript library, installed by npm in pinned versions."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

from storage.disk.directories import publishing_path
from storage.errors import ConfigError
from storage.reading.remote_cache import default_local_copy

_HERE = Path(__file__).parent
_SPECIFICATION = ("package.json", "package-lock.json")
# Address below /vendor/ → file below node_modules/.
VENDOR_FILES = {
    "transformers.js": "@huggingface/transformers/dist/transformers.min.js",
    "ort.mjs": "onnxruntime-web/dist/ort-wasm-simd-threaded.asyncify.mjs",
    "ort.wasm": "onnxruntime-web/dist/ort-wasm-simd-threaded.asyncify.wasm",
}


def default_packages_dir() -> Path:
    """In the user's cache directory, under a name that changes with the pinned versions."""
    pinned = b"".join((_HERE / name).read_bytes() for name in _SPECIFICATION)
    return default_local_copy().directory / f"web-{hashlib.sha256(pinned).hexdigest()[:12]}"


def install_packages(directory: Path) -> Path:
    """`directory`, with the packages in its node_modules; npm is run only when they are not there.

    Raises ConfigError without npm, or when it fails.
    """
    if all((directory / "node_modules" / file).is_file() for file in VENDOR_FILES.values()):
        return directory
    if directory.exists():
        raise ConfigError(
            f"{directory}: holds no node_modules with {VENDOR_FILES['ort.wasm']}; name another --packages"
        )
    npm = shutil.which("npm")
    if npm is None:
        raise ConfigError("npm is not on the path; install Node.js, or name a directory with --packages")
    with publishing_path(directory) as staged:
        staged.mkdir()
        for name in _SPECIFICATION:
            shutil.copyfile(_HERE / name, staged / name)
        # No package gets to run anything; the page needs files alone.
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        done = subprocess.run(command, cwd=staged, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ConfigError(f"npm ci failed: {' '.join((done.stderr or done.stdout).split())[:500]}")
    return directory
