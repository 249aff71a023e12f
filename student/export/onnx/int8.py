"""8-bit weights for an ONNX graph: onnxruntime's dynamic quantisation, and one shared table for embedding and head.

Products with a weight matrix go through quantize_dynamic: uint8 weights with a scale and a zero point per output
channel, activations quantised as they come. It knows no tied weights: it would leave the embedding in float32, or
store it a second time for the head, and both are most of a small model. So every table that rows are gathered from or
that is multiplied transposed, as heads are, becomes uint8 with a scale per row; a tied head multiplies with the very
bytes of the embedding, for the rows of the table are the head's channels.
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
    """Write the graph at `source` with 8-bit weights as `path`."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch, _without_advice():
        quantized = Path(scratch) / "matmuls.onnx"
        # Unsigned weights: products of uint8 with int8 overflow on x86 processors without VNNI.
        quantize_dynamic(
            source, quantized, op_types_to_quantize=["MatMul"], per_channel=True, weight_type=QuantType.QUInt8
        )
        proto = onnx.load(quantized)
    for table in _tables(proto.graph):
        _quantize_table(proto.graph, table)
    save_plain(proto, path)


def quantize_rows(table_VD: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """uint8 rows and their scales [V]: row ≈ scale · (uint8 − 128), the largest entry ±127 from 128."""
    scale_V = np.abs(table_VD).max(axis=1) / _LARGEST
    scale_V[scale_V == 0] = 1.0
    return (np.rint(table_VD / scale_V[:, None]) + _ZERO_POINT).astype(np.uint8), scale_V.astype(np.float32)


def _tables(graph: Any) -> list[str]:
    """Names of float32 matrices that rows are gathered from, or that are transposed before a product."""
    from onnx import TensorProto

    matrices = {t.name for t in graph.initializer if t.data_type == TensorProto.FLOAT and len(t.dims) == 2}
    users = [node.input[0] for node in graph.node if node.op_type in ("Gather", "Transpose")]
    return list(dict.fromkeys(name for name in users if name in matrices))


def _quantize_table(graph: Any, name: str) -> None:
    """Replace a table by its 8-bit rows wherever it is gathered from or multiplied with."""
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
    """scale · (uint8 − 128) of the rows that ids name, float32."""
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
    """hidden · rowsᵀ in integers, hidden quantised as it comes, then both scales; as quantize_dynamic writes it."""
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
    """quantize_dynamic advises on the root logger to optimise first, which the exporter has done."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
