"""Exported files in the hands of their runtimes, all behind one interface."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from storage.errors import MissingExtraError
from student.export.logits import Logits


class Reader(Protocol):
    """A model that reads one sequence on one thread, piece by piece, and keeps keys and values of what it has read."""

    def reset(self) -> None:
        """Forget the sequence."""

    def read(self, input_ids: Sequence[int]) -> Logits:
        """Read on; logits [T, V] behind each of the T ids."""


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """What runs an exported file: its name and version for people, and how it opens a path."""

    name: str
    open: Callable[[Path], Reader]


def runtime_of(path: Path) -> Runtime:
    """Import the runtime for an export: a directory with onnx/, a GGUF file, or a directory for transformers.

    llama.cpp runs GGUF where llama-cpp-python is installed, else numpy what gguf's own reader finds.
    Raises MissingExtraError.
    """
    if path.is_file():
        return _gguf_runtime()
    return _onnx_runtime() if (path / "onnx").is_dir() else _transformers_runtime()


def onnx_file(directory: Path) -> Path:
    """The one graph of an ONNX export."""
    (path,) = (directory / "onnx").glob("*.onnx")
    return path


def greedy_ids(reader: Reader, prompt_ids: Sequence[int], num_new: int) -> list[int]:
    """The most probable continuation, one token at a time."""
    reader.reset()
    ids = [int(reader.read(prompt_ids)[-1].argmax())]
    while len(ids) < num_new:
        ids.append(int(reader.read(ids[-1:])[-1].argmax()))
    return ids


def require(what: str, *packages: str) -> None:
    """Raise MissingExtraError unless the packages of the extra `export` can be imported."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise MissingExtraError(what, package, "export") from error


def _onnx_runtime() -> Runtime:
    require("an ONNX file", "onnxruntime")
    import onnxruntime

    from student.export.onnx.reader import OnnxReader

    return Runtime(name=f"onnxruntime {onnxruntime.__version__}", open=lambda path: OnnxReader(onnx_file(path)))


def _gguf_runtime() -> Runtime:
    try:
        import llama_cpp
    except ImportError:
        return _numpy_runtime()
    from student.export.gguf.llama_reader import LlamaReader

    return Runtime(name=f"llama.cpp (llama-cpp-python {llama_cpp.__version__})", open=LlamaReader)


def _numpy_runtime() -> Runtime:
    require("a GGUF file", "gguf")
    from student.export.gguf.reader import GgufReader

    return Runtime(name="gguf's reader and numpy", open=GgufReader)


def _transformers_runtime() -> Runtime:
    import transformers

    from student.export.transformers_reader import TransformersReader

    return Runtime(name=f"transformers {transformers.__version__}", open=TransformersReader)
