"""Write a GPT-2-architecture student as a GGUF file for llama.cpp: weights, shape and tokenizer in one file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.pages.markup import visible
from storage.tensors.model_facts import num_parameters
from student.errors import NotExportableError
from student.export.config import Quantize
from student.export.gguf.tokenizer import add_tokenizer, check_tokenizer
from student.model.framing import Framing

# llama.cpp has one GELU, which is GPT-2's approximation. transformers has these names for it.
_ACTIVATIONS = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")
_LAYER_PARTS = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def check_gguf(model: Any, tokenizer: Any, framing: Framing, name: str) -> None:
    """Raise NotExportableError when llama.cpp's gpt2 cannot express the model or its tokenizer."""
    config = model.config
    if config.model_type != "gpt2":
        raise NotExportableError(name, "gguf", f"is a {config.model_type} model, expected gpt2; export it as onnx")
    if config.activation_function not in _ACTIVATIONS:
        problem = f"has activation {config.activation_function!r}, llama.cpp's gpt2 has {_ACTIVATIONS[0]!r} alone"
        raise NotExportableError(name, "gguf", problem)
    if not config.scale_attn_weights or config.scale_attn_by_inverse_layer_idx:
        raise NotExportableError(name, "gguf", "scales attention in another way than llama.cpp's gpt2")
    check_tokenizer(tokenizer, framing, name)


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

    config = model.config
    writer = GGUFWriter(path, "gpt2")
    _add_description(writer, num_parameters(model), quantize, name, licences)
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    add_tokenizer(writer, tokenizer, framing, config.vocab_size)
    for weight_name, weight in gguf_weights(model):
        _add_weight(writer, weight_name, weight, quantize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_weights(model: Any) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield the weights under llama.cpp's names, matrices as [out, in].

    A tied head is left out: llama.cpp then uses the embedding.
    """
    weights = {name: weight.detach().float().cpu().numpy() for name, weight in model.state_dict().items()}
    yield "token_embd.weight", weights["transformer.wte.weight"]
    yield "position_embd.weight", weights["transformer.wpe.weight"]
    for layer in range(model.config.n_layer):
        for part, theirs in _LAYER_PARTS.items():
            weight = weights[f"transformer.h.{layer}.{part}.weight"]
            yield f"blk.{layer}.{theirs}.weight", weight.T  # Conv1D stores [in, out]; .T leaves vectors as they are
            yield f"blk.{layer}.{theirs}.bias", weights[f"transformer.h.{layer}.{part}.bias"]
    yield "output_norm.weight", weights["transformer.ln_f.weight"]
    yield "output_norm.bias", weights["transformer.ln_f.bias"]
    if not model.config.tie_word_embeddings:
        yield "output.weight", weights["lm_head.weight"]


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
