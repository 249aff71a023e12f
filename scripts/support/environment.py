"""A virtual environment for other storage libraries, whose pinned requirements conflict with this project's.

It is made once and uses this project's PyTorch. Its packages come before those of the environment that made it on the
import path, so that only packages that differ are installed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import version
from pathlib import Path

PEERS = ("mosaicml-streaming", "litdata", "webdataset")
_READY_NAME = "ready"
# mosaicml-streaming imports these for its image data sets. No torchvision may be installed that fits this PyTorch.
_EMPTY_TORCHVISION = {
    "__init__.py": "",
    "datasets.py": "class VisionDataset: ...\n\n\nclass CIFAR10: ...\n",
    "transforms/__init__.py": "",
    "transforms/functional.py": "def to_tensor(*args): ...\n",
}


def default_directory() -> Path:
    """Return the default directory of the environment, in the user's cache directory."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "teachonce" / "peers"


def peers_python(directory: Path) -> str:
    """Return the Python of the environment in `directory`.

    Make the environment if it does not exist, which takes a minute and downloads 300 MB.
    """
    python = directory / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not (directory / _READY_NAME).exists():
        _make(directory, str(python))
        (directory / _READY_NAME).touch()
    return str(python)


def _make(directory: Path, python: str) -> None:
    venv.create(directory, clear=True, with_pip=True)
    paths = {"base": str(directory), "platbase": str(directory)}
    packages = Path(sysconfig.get_path("purelib", "venv", paths))
    (packages / "host.pth").write_text(sysconfig.get_path("purelib") + "\n")
    constraints = directory / "constraints.txt"
    constraints.write_text(f"torch=={version('torch').partition('+')[0]}\n")
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    # pip warns that versions conflict with this project's packages. That is expected.
    subprocess.run([*pip, "install", "--constraint", str(constraints), *PEERS], check=True, stdout=sys.stderr)
    if subprocess.run([python, "-c", "import torchvision"], capture_output=True, check=False).returncode:
        subprocess.run([*pip, "uninstall", "--yes", "torchvision"], check=True, stdout=sys.stderr)
        for name, content in _EMPTY_TORCHVISION.items():
            path = packages / "torchvision" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
