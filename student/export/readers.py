"""One interface to the runtimes that run exported files."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from storage.errors import MissingExtraError
from student.export.logits import Logits


class Reader(Protocol):
    """A model that reads one sequence piece by piece on one thread, and keeps keys and values of the tokens read."""

    def reset(self) -> None:
        """Forget the sequence."""

    def read(self, input_ids: Sequence[int]) -> Logits:
        """Read the next T ids of the sequence; return the logits [T, V] after each of them."""


@runtime_checkable
class TextReader(Reader, Protocol):
    """A reader of a file that holds its tokenizer."""

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of a text, without special tokens around it."""


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """A library that runs exported files: its name and version to print, and a function that opens a path."""

    name: str
    open: Callable[[Path], Reader]


def runtime_of(path: Path) -> Runtime:
    """Import the runtime for an export: a directory with onnx/, a GGUF file, or a directory for transformers.

    llama.cpp runs a GGUF file if llama-cpp-python is installed. Otherwise gguf's own reader reads it and numpy runs it.
    Raises MissingExtraError.
    """
    if path.is_file():
        return _gguf_runtime()
    return _onnx_runtime() if (path / "onnx").is_dir() else _transformers_runtime()


def onnx_file(directory: Path) -> Path:
    """Return the path of the one graph in an ONNX export."""
    (path,) = (directory / "onnx").glob("*.onnx")
    return path


def greedy_ids(reader: Reader, prompt_ids: Sequence[int], num_new: int) -> list[int]:
    """Return a greedy continuation of the prompt: at each step the most probable token."""
    reader.reset()
    ids = [int(reader.read(prompt_ids)[-1].argmax())]
    while len(ids) < num_new:
        ids.append(int(reader.read(ids[-1:])[-1].argmax()))
    return ids


def require(what: str, *packages: str) -> None:
    """Raise MissingExtraError unless `packages`, which the extra `export` installs, can be imported."""
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
