"""A student as an ONNX graph with a key-value cache, in the layout that optimum and transformers.js load.

Legend: B sequences, T new tokens, P tokens before them, H key-value heads, D width of a head, V vocabulary.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from storage.errors import first_line
from storage.tensors.model_facts import body_of, context_length_of, num_parameters, rescaled_beyond
from student.errors import NotExportableError
from student.model.architecture import output_head

# The opset that torch exports without a conversion. Every onnxruntime from 1.14 on reads it.
OPSET = 18
# The optimiser's default limit of 8,192 numbers would store the transpose of a small tied head beside the embedding.
_MOST_FOLDED = 16
_MOST_BYTES = 2**31 - 2**24  # protobuf holds 2 GiB

KeyValues = list[tuple[Tensor, Tensor]]


class CachedForward(nn.Module):
    """input_ids, position_ids [B, T], attention_mask [B, P + T], keys and values [B, H, P, D] → logits [B, T, V].

    attention_mask is 0 where a sequence is padded. The outputs after the logits are keys and values [B, H, P + T, D].
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        output_head(model)  # runs the model to find out what its head does, which the exporter cannot trace

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past_key_values: KeyValues
    ) -> tuple[Tensor, KeyValues]:
        """Read T new tokens after the P tokens whose keys and values are given."""
        num_new, num_past = input_ids.shape[1], past_key_values[0][0].shape[2]
        query_T1 = torch.arange(num_new)[:, None] + num_past
        key_S = torch.arange(num_past + num_new)
        is_seen_BTS = (key_S <= query_T1) & (attention_mask[:, None, :] > 0)
        bias_B1TS = torch.where(is_seen_BTS, 0.0, torch.finfo(torch.float32).min)[:, None]
        output = body_of(self.model)(
            input_ids=input_ids,
            attention_mask=bias_B1TS,
            position_ids=position_ids,
            past_key_values=DynamicCache(past_key_values),
            use_cache=True,
        )
        logits_BTV = output_head(self.model).logits(output.last_hidden_state)
        return logits_BTV, [(layer.keys, layer.values) for layer in output.past_key_values.layers]


def write_onnx(model: Any, name: str, path: Path) -> None:
    """Write the float32 graph of a student as one file.

    Raises NotExportableError for a graph over 2 GiB, and for a model that CachedForward or torch's exporter cannot
    express.
    """
    _require_plain_attention(model, name)
    if 4 * num_parameters(model) > _MOST_BYTES:
        raise NotExportableError(name, "onnx", f"has {num_parameters(model):,} parameters, and the file holds 2 GiB")
    import onnxscript.optimizer

    path.parent.mkdir(parents=True, exist_ok=True)
    with _quietly():
        program = _exported(model, name)
        onnxscript.optimizer.optimize_ir(program.model, input_size_limit=_MOST_FOLDED)
    save_plain(program.model_proto, path)


def _require_plain_attention(model: Any, name: str) -> None:
    """Raise NotExportableError unless each layer sees the keys and values of all tokens before, at any length."""
    layers = getattr(getattr(_read_one_token(model), "past_key_values", None), "layers", ())
    context_length, rescaled = context_length_of(model), rescaled_beyond(model)
    windows = [layer.sliding_window for layer in layers if getattr(layer, "is_sliding", False)]
    problem = None
    if not layers or not all(_has_keys_of_tokens(layer) for layer in layers):
        problem = "has layers without keys and values of their own for each token"
    elif min(windows, default=context_length) < context_length:
        problem = f"has layers that see {min(windows)} tokens of its {context_length}"
    elif 0 < rescaled < context_length:
        problem = f"reads texts of more than {rescaled} tokens with other positions than shorter ones"
    if problem is not None:
        raise NotExportableError(name, "onnx", f"{problem}; export it as safetensors")


def _has_keys_of_tokens(layer: Any) -> bool:
    keys = getattr(layer, "keys", None)
    return isinstance(keys, Tensor) and keys.ndim == 4 and keys.shape[2] == 1


def _exported(model: Any, name: str) -> torch.onnx.ONNXProgram:
    try:
        program = torch.onnx.export(
            CachedForward(model).eval(),
            _example_inputs(model),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=_dynamic_shapes(len(_empty_key_values(model))),
            input_names=["input_ids", "attention_mask", "position_ids", *_key_value_names(model, "past_key_values")],
            output_names=["logits", *_key_value_names(model, "present")],
            external_data=False,
            optimize=False,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        reason = first_line(error.__cause__ or error)
        problem = f"cannot be expressed by torch's exporter ({reason}); export it as safetensors"
        raise NotExportableError(name, "onnx", problem) from error
    assert program is not None
    return program


def save_plain(proto: Any, path: Path) -> None:
    """Write a graph with named axes and without the exporter's metadata on every node."""
    import onnx

    _name_axes(proto.graph)
    del proto.graph.value_info[:], proto.metadata_props[:], proto.graph.metadata_props[:]
    for part in (*proto.graph.node, *proto.graph.initializer, *proto.graph.input, *proto.graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    onnx.checker.check_model(proto)
    onnx.save_model(proto, path)


def _name_axes(graph: Any) -> None:
    """Name the axes that vary in size, for people who inspect the graph."""
    for value in (*graph.input, *graph.output):
        axes = value.type.tensor_type.shape.dim
        axes[0].dim_param = "batch_size"
        if value.name.startswith("past_key_values."):
            axes[2].dim_param = "past_sequence_length"
        elif value.name.startswith("present."):
            axes[2].dim_param = "total_sequence_length"
        else:
            axes[1].dim_param = "total_sequence_length" if value.name == "attention_mask" else "sequence_length"


def _example_inputs(model: Any) -> tuple[Tensor, Tensor, Tensor, KeyValues]:
    """Return inputs in which no two axes have the same size, so that the exporter does not take them for one axis."""
    num_sequences, num_new, num_past = 2, 3, 5
    past = [tuple(t.new_zeros(2, t.shape[1], num_past, t.shape[3]) for t in pair) for pair in _empty_key_values(model)]
    return (
        torch.ones(num_sequences, num_new, dtype=torch.int64),
        torch.ones(num_sequences, num_past + num_new, dtype=torch.int64),
        torch.arange(num_past, num_past + num_new).repeat(num_sequences, 1),
        past,  # type: ignore[return-value]
    )


def _empty_key_values(model: Any) -> KeyValues:
    """Return the keys and values of one token, layer by layer. Their shapes give heads and widths for any model."""
    return [(layer.keys, layer.values) for layer in _read_one_token(model).past_key_values.layers]


@torch.no_grad()
def _read_one_token(model: Any) -> Any:
    return body_of(model)(input_ids=torch.zeros(1, 1, dtype=torch.int64), use_cache=True)


def _key_value_names(model: Any, prefix: str) -> list[str]:
    return [f"{prefix}.{i}.{part}" for i in range(len(_empty_key_values(model))) for part in ("key", "value")]


def _dynamic_shapes(num_layers: int) -> dict[str, Any]:
    any_size = torch.export.Dim.DYNAMIC
    text = {0: any_size, 1: any_size}
    pair = ({0: any_size, 2: any_size}, {0: any_size, 2: any_size})
    return {
        "input_ids": text,
        "attention_mask": text,
        "position_ids": text,
        "past_key_values": [pair] * num_layers,
    }


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Silence the exporter, which reports packages that it could also use, and its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
