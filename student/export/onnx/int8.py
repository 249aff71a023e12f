"""8-bit weights for an ONNX graph: onnxruntime's dynamic quantisation, and one shared table for embedding and head.

quantize_dynamic converts products with a weight matrix: uint8 weights with a scale and a zero point per output channel,
and activations that are quantised at run time. It does not support tied weights: it would leave the embedding in
float32, or store it a second time for the head, and these are most of a small model. So this module converts every
table from which rows are gathered, or which is multiplied transposed (as heads are), to uint8 with a scale per row. A
tied head then multiplies with the bytes of the embedding, because the rows of the table are the head's channels.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from student.export.onnx.graph import save_plain

_LARGEST = 127
_ZERO_POINT = 128


def quantize_onnx(source: Path, path: Path) -> None:
    """Write the graph at `source` to `path` with 8-bit weights."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxscript.optimizer import remove_unused_nodes

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch, _without_advice():
        quantized = Path(scratch) / "matmuls.onnx"
        # Weights are unsigned because products of uint8 and int8 overflow on x86 processors without VNNI.
        quantize_dynamic(
            source, quantized, op_types_to_quantize=["MatMul"], per_channel=True, weight_type=QuantType.QUInt8
        )
        proto = onnx.load(quantized)
    for table in _tables(proto.graph):
        _quantize_table(proto.graph, table)
    remove_unused_nodes(proto)  # a table without a product, such as the positions, leaves its zero point unused
    save_plain(proto, path)


def quantize_rows(table_VD: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return uint8 rows [V, D] and float32 scales [V]: row ≈ scale · (uint8 − 128).

    The entry with the largest magnitude in a row becomes 128 ± 127.
    """
    scale_V = np.abs(table_VD).max(axis=1) / _LARGEST
    scale_V[scale_V == 0] = 1.0
    return (np.rint(table_VD / scale_V[:, None]) + _ZERO_POINT).astype(np.uint8), scale_V.astype(np.float32)


def _tables(graph: Any) -> list[str]:
    """Return the names of float32 matrices from which rows are gathered, or which are transposed."""
    from onnx import TensorProto

    matrices = {t.name for t in graph.initializer if t.data_type == TensorProto.FLOAT and len(t.dims) == 2}
    users = [node.input[0] for node in graph.node if node.op_type in ("Gather", "Transpose")]
    return list(dict.fromkeys(name for name in users if name in matrices))


def _quantize_table(graph: Any, name: str) -> None:
    """Replace a table by its 8-bit rows in every gather and every product."""
    from onnx import numpy_helper

    (stored,) = (tensor for tensor in graph.initializer if tensor.name == name)
    rows_VD, scale_V = quantize_rows(numpy_helper.to_array(stored))
    graph.initializer.remove(stored)
    constants = {
        "rows": rows_VD,
        "scale": scale_V,
        "zero_point": np.uint8(_ZERO_POINT),
        "zero": np.float32(_ZERO_POINT),
        "last_axis": np.array([-1]),
    }
    graph.initializer.extend(numpy_helper.from_array(np.asarray(v), f"{name}.{k}") for k, v in constants.items())
    transposed = [n.output[0] for n in graph.node if n.op_type == "Transpose" and n.input[0] == name]
    nodes = []
    for node in graph.node:
        if node.op_type == "Gather" and node.input[0] == name:
            nodes += _gathered_rows(name, node.input[1], node.output[0])
        elif node.op_type == "MatMul" and node.input[1] in transposed:
            nodes += _product_with_rows(name, node.input[0], node.output[0])
        elif node.output[0] not in transposed:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _gathered_rows(table: str, ids: str, out: str) -> list[Any]:
    """Return the nodes that compute scale · (uint8 − 128) in float32 for the rows that `ids` name."""
    from onnx import TensorProto, helper

    return [
        helper.make_node("Gather", [f"{table}.rows", ids], [f"{out}.rows"]),
        helper.make_node("Cast", [f"{out}.rows"], [f"{out}.float"], to=TensorProto.FLOAT),
        helper.make_node("Sub", [f"{out}.float", f"{table}.zero"], [f"{out}.centred"]),
        helper.make_node("Gather", [f"{table}.scale", ids], [f"{out}.scales"]),
        helper.make_node("Unsqueeze", [f"{out}.scales", f"{table}.last_axis"], [f"{out}.scale"]),
        helper.make_node("Mul", [f"{out}.centred", f"{out}.scale"], [out]),
    ]


def _product_with_rows(table: str, hidden: str, out: str) -> list[Any]:
    """Return the nodes that quantise `hidden`, compute hidden · rowsᵀ in integers and apply both scales.

    quantize_dynamic writes the same nodes for its products.
    """
    from onnx import TensorProto, helper

    quantized = [f"{out}.hidden", f"{out}.hidden_scale", f"{out}.hidden_zero"]
    factors = [quantized[0], f"{out}.columns", quantized[2], f"{table}.zero_point"]
    return [
        helper.make_node("DynamicQuantizeLinear", [hidden], quantized),
        helper.make_node("Transpose", [f"{table}.rows"], [f"{out}.columns"], perm=[1, 0]),
        helper.make_node("MatMulInteger", factors, [f"{out}.int32"]),
        helper.make_node("Cast", [f"{out}.int32"], [f"{out}.float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [quantized[1], f"{table}.scale"], [f"{out}.scale"]),
        helper.make_node("Mul", [f"{out}.float", f"{out}.scale"], [out]),
    ]


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """Disable logging: quantize_dynamic advises on the root logger to optimise first, which write_onnx has done."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
