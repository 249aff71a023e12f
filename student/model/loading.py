"""Load a saved student, and measure its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError

from storage.errors import first_line
from student.errors import NoSuchStudentError

# Run no code from a student's directory, and do not look for a missing file on the hub.
AS_DATA = {"trust_remote_code": False, "local_files_only": True}


def load_student(directory: Path) -> Any:
    """Return a saved student with float32 weights; raise NoSuchStudentError when it cannot be loaded."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if not (directory / "config.json").is_file():
        raise NoSuchStudentError(str(directory), "no config.json")
    try:
        return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, **AS_DATA)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise NoSuchStudentError(str(directory), first_line(error)) from error


def weights_bytes(path: Path) -> int:
    """Return the size of a model's file, or of the files in its directory that hold the weights."""
    if path.is_file():
        return path.stat().st_size
    kinds = ("model*.safetensors", "pytorch_model*.bin", "onnx/*.onnx")
    found = ([file.stat().st_size for file in path.glob(kind)] for kind in kinds)
    return sum(next(filter(None, found), []))
