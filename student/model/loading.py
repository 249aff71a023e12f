"""Load a saved student, and measure its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from storage.disk.json_files import read_json_object
from storage.errors import UnusableModelError
from storage.tensors.checkpoints.adapters import merged
from storage.tensors.checkpoints.first_passes import require_causal
from storage.tensors.checkpoints.loading import load_checkpoint
from student.errors import NoSuchStudentError

# Do not look for a missing file on the hub.
AS_DATA = {"local_files_only": True}


def load_student(directory: Path) -> Any:
    """Return a saved student with float32 weights; raise NoSuchStudentError when it cannot be loaded.

    Raise MissingExtraError when an adapter lies beside it and peft is not installed.
    """
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if not directory.is_dir():
        raise NoSuchStudentError(str(directory), "no such directory")
    try:
        if (directory / "config.json").is_file():
            require_unquantized(read_json_object(directory / "config.json"))
        model = merged(load_checkpoint(transformers, str(directory), dtype=torch.float32, **AS_DATA))
        require_causal(model)
    except UnusableModelError as error:
        raise NoSuchStudentError(str(directory), error.reason) from error
    learn_all_embeddings(model)
    return model


def require_unquantized(settings: dict[str, Any]) -> None:
    """Raise UnusableModelError for the config of a model with quantised weights."""
    if settings.get("quantization_config"):
        raise UnusableModelError("its weights are quantized (quantization_config); a student's are float32")


def learn_all_embeddings(model: Any) -> None:
    """Let every embedding learn, also the one of pad_token_id: masks come from lengths, so it may be any token."""
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            module.padding_idx = None


def weights_bytes(path: Path) -> int:
    """Return the size of a model's file, or of the files in its directory that hold the weights."""
    if path.is_file():
        return path.stat().st_size
    kinds = ("model*.safetensors", "pytorch_model*.bin", "onnx/*.onnx")
    found = ([file.stat().st_size for file in path.glob(kind)] for kind in kinds)
    return sum(next(filter(None, found), []))
