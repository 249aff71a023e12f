"""Write a student as a GGUF file for llama.cpp: weights, shape and tokenizer in one file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.pages.markup import visible
from storage.tensors.model_facts import num_parameters
from storage.tensors.output_head import output_head_of
from student.errors import NotExportableError
from student.export.config import Quantize
from student.export.gguf.architecture import Architecture, Weights
from student.export.gguf.gpt2 import GPT2
from student.export.gguf.llama import LLAMA, QWEN2, attention_window
from student.export.gguf.tokenizer import add_tokenizer, check_tokenizer
from student.model.framing import Framing

# llama.cpp's architectures by transformers' model_type.
_ARCHITECTURES = {"gpt2": GPT2, "llama": LLAMA, "mistral": LLAMA, "qwen2": QWEN2}


def check_gguf(model: Any, tokenizer: Any, framing: Framing, name: str) -> None:
    """Raise NotExportableError when llama.cpp would compute something else than the model, or cut text otherwise."""
    model_type = model.config.model_type
    if model_type not in _ARCHITECTURES:
        expected = ", ".join(_ARCHITECTURES)
        raise NotExportableError(
            name, "gguf", f"is a {model_type} model, expected one of {expected}; export it as onnx"
        )
    problem = _architecture(model).problem(model) or _head_problem(model)
    if problem:
        raise NotExportableError(name, "gguf", problem)
    check_tokenizer(tokenizer, framing, name)


def check_lengths(model: Any, longest: int, name: str) -> None:
    """Raise NotExportableError when the model's window of attention is shorter than the `longest` text, in tokens.

    llama.cpp would let the end of such a text attend to its beginning, which the model does not.
    """
    window = attention_window(model.config)
    if window is not None and longest > window:
        problem = (
            f"attends to the last {window} tokens alone, which llama.cpp ignores, and a held-out text has {longest}; "
            "export it as safetensors"
        )
        raise NotExportableError(name, "gguf", problem)


def write_gguf(
    model: Any,
    tokenizer: Any,
    framing: Framing,
    path: Path,
    quantize: Quantize,
    *,
    name: str,
    licences: Sequence[str] = (),
) -> None:
    """Write the file: matrices in float16 or q8_0, vectors and position embeddings in float32.

    With q8_0, a matrix whose rows cannot be divided into blocks of 32 is in float16. name: of the model, for people;
    licences: those of all the text that it was trained on, none when that is not known.
    """
    from gguf import GGUFWriter

    architecture = _architecture(model)
    writer = GGUFWriter(path, architecture.name)
    _add_description(writer, num_parameters(model), quantize, name, licences)
    architecture.add_shape(writer, model.config)
    add_tokenizer(writer, tokenizer, framing, model.config.vocab_size, name)
    for weight_name, weight in gguf_weights(model):
        _add_weight(writer, weight_name, weight, quantize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_weights(model: Any) -> Weights:
    """Yield the weights under llama.cpp's names, matrices as [out, in]."""
    return _architecture(model).weights(model)


def _head_problem(model: Any) -> str | None:
    head = output_head_of(model)
    is_matrix = head is not None and head.bias_V is None and head.scale == 1.0 and head.cap_nats is None
    return None if is_matrix else "has an output head that is more than a matrix, which llama.cpp has no place for"


def _architecture(model: Any) -> Architecture:
    return _ARCHITECTURES[model.config.model_type]


def _add_description(writer: Any, num_weights: int, quantize: Quantize, name: str, licences: Sequence[str]) -> None:
    """Write what llama.cpp and the hub show of a file. `general.basename` is left out: a student has no base model.

    Several licences hold together, which SPDX writes as AND.
    """
    from gguf import GGML_QUANT_VERSION, GGUFType, LlamaFileType, size_label

    writer.add_type(GGUFType.MODEL)
    writer.add_name(visible(name))
    writer.add_size_label(size_label(num_weights, 0, 0, 0))
    if licences:
        writer.add_license(visible(" AND ".join(licences)))
    writer.add_file_type(LlamaFileType.MOSTLY_Q8_0 if quantize == "q8_0" else LlamaFileType.MOSTLY_F16)
    writer.add_quantization_version(GGML_QUANT_VERSION)


def _add_weight(writer: Any, name: str, weight: NDArray[np.float32], quantize: Quantize) -> None:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

    weight = np.ascontiguousarray(weight)
    block_size, _ = GGML_QUANT_SIZES[GGMLQuantizationType.Q8_0]
    if weight.ndim == 1 or name.startswith("position_embd"):
        stored = GGMLQuantizationType.F32
    elif quantize == "q8_0" and weight.shape[1] % block_size == 0:
        stored = GGMLQuantizationType.Q8_0
    else:
        stored = GGMLQuantizationType.F16
    writer.add_tensor(name, quants.quantize(weight, stored), raw_dtype=stored)
