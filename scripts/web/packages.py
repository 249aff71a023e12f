"""Install the page's JavaScript library with npm, in pinned versions."""

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
# Maps the address below /vendor/ to the file below node_modules/.
VENDOR_FILES = {
    "transformers.js": "@huggingface/transformers/dist/transformers.min.js",
    "ort.mjs": "onnxruntime-web/dist/ort-wasm-simd-threaded.asyncify.mjs",
    "ort.wasm": "onnxruntime-web/dist/ort-wasm-simd-threaded.asyncify.wasm",
}


def default_packages_dir() -> Path:
    """Return a directory in the user's cache directory, whose name changes with the pinned versions."""
    pinned = b"".join((_HERE / name).read_bytes() for name in _SPECIFICATION)
    return default_local_copy().directory / f"web-{hashlib.sha256(pinned).hexdigest()[:12]}"


def install_packages(directory: Path) -> Path:
    """Return `directory` with the packages in its node_modules. Run npm only when the directory does not exist.

    Raises ConfigError when the directory exists without the packages, when npm is missing, or when npm fails.
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
        # Do not run the packages' scripts: the page only needs their files.
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        done = subprocess.run(command, cwd=staged, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ConfigError(f"npm ci failed: {' '.join((done.stderr or done.stdout).split())[:500]}")
    return directory
