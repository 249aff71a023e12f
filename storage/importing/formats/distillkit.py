"""distillkit: the compressed sets of arcee-ai/DistillKit, Parquet with bytes per position.

A position has the k most probable ids, most probable first, as integers of ⌈log2 d⌉ bits each, and their logprobs.
Bits are packed from the highest of each integer on, and filled up to whole bytes. The logprobs are, in this order:
exact_k of them as they are; the coefficients of a curve in the place among the others; and for each bin a scale and
integers of element_bits bits, which are what the curve leaves, in units of the scale. With delta_encoding, all of this
is about the difference of each logprob from the one before it. Numbers are little-endian.

Shape legend: N positions, B bytes, k entries, C coefficients.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.importing.config import ImportConfig
from storage.importing.errors import ImportRowError, MisalignedRowError
from storage.importing.formats.distillkit_config import Compression, read_compression
from storage.importing.formats.tables import flat_list, nested_list, table_rows, wanted_tokens
from storage.importing.formats.topk_parquet import about_next
from storage.importing.source_text import Floats, Int64s, SourceText

_LOGPROBS, _IDS = "compressed_logprobs", "bytepacked_indices"
Bytes = NDArray[np.uint8]


def texts(path: Path, config: ImportConfig) -> Iterator[SourceText]:
    """Yield the texts of a file. Raise ImportRowError or ImportSourceError."""
    compression = read_compression(config)
    labels = config.labels_column
    columns = [config.input_ids_column, _LOGPROBS, _IDS, *([labels] if labels else [])]
    for where, row in table_rows(path, columns):
        input_ids = flat_list(where, columns[0], row[columns[0]], np.int64)
        logprob_bytes_NB = _bytes(where, _LOGPROBS, row, compression.logprob_bytes)
        id_bytes_NB = _bytes(where, _IDS, row, compression.id_bytes)
        if len(logprob_bytes_NB) != len(id_bytes_NB):
            raise MisalignedRowError(
                where, f"{_LOGPROBS} has {len(logprob_bytes_NB)} positions, {_IDS} has {len(id_bytes_NB)}"
            )
        ids_Nk = unpack_bits(id_bytes_NB, compression.id_bits, compression.k)
        logprobs_Nk = decode_logprobs(logprob_bytes_NB, compression)
        size = np.full(len(ids_Nk), compression.k, dtype=np.int64)
        is_wanted = wanted_tokens(where, labels, row, len(input_ids))
        yield about_next(where, input_ids, size, ids_Nk.reshape(-1), logprobs_Nk.reshape(-1), is_wanted)


def _bytes(where: str, name: str, row: dict[str, Any], num_bytes: int) -> Bytes:
    """Return the bytes of all positions [N, B]."""
    sizes, values = nested_list(where, name, row[name], np.uint8)
    if len(wrong := np.flatnonzero(sizes != num_bytes)):
        raise ImportRowError(
            where,
            f"position {wrong[0]}: {name} has {sizes[wrong[0]]} bytes, expected {num_bytes} by its compression: is it "
            "the configuration that the set was written with?",
        )
    return values.reshape(-1, num_bytes)


def unpack_bits(packed_NB: Bytes, num_bits: int, num_values: int) -> Int64s:
    """Return the first num_values integers of num_bits bits each, packed from the highest bit on: [N, num_values]."""
    bits = np.unpackbits(packed_NB, axis=1)[:, : num_bits * num_values].reshape(-1, num_values, num_bits)
    values = np.zeros(bits.shape[:2], dtype=np.int64)
    for place in range(num_bits):
        values = (values << 1) | bits[:, :, place]
    return values


def decode_logprobs(packed_NB: Bytes, compression: Compression) -> Floats:
    """Return the log-probabilities of all entries in nats, most probable first: [N, k]."""
    offset = 0

    def numbers(count: int, dtype: str) -> Floats:
        nonlocal offset
        found, offset = _numbers(packed_NB, offset, count, dtype)
        return found

    exact_Nk = numbers(compression.exact_k, compression.exact_dtype)
    coefficients_NC = numbers(len(compression.terms), compression.term_dtype)
    rest_Nk = coefficients_NC @ compression.curve.T
    place = 0
    for part in compression.residual_bins:
        scale_N1 = numbers(1, part.scale_dtype)
        packed = packed_NB[:, offset : offset + part.packed_bytes]
        offset += part.packed_bytes
        values = unpack_bits(packed, part.element_bits, part.num_elements)
        rest_Nk[:, place : place + part.num_elements] += part.signed(values) * scale_N1
        place += part.num_elements
    logprobs_Nk = np.concatenate([exact_Nk, rest_Nk], axis=1)
    return np.cumsum(logprobs_Nk, axis=1) if compression.delta_encoding else logprobs_Nk


def _numbers(packed_NB: Bytes, offset: int, count: int, dtype: str) -> tuple[Floats, int]:
    """Return `count` numbers of `dtype` at `offset` as float64 [N, count], and the offset after them."""
    stored = np.dtype("<u2" if dtype == "bfloat16" else dtype).newbyteorder("<")
    end = offset + count * stored.itemsize
    found = np.ascontiguousarray(packed_NB[:, offset:end]).view(stored).reshape(len(packed_NB), count)
    if dtype == "bfloat16":  # the high half of a float32
        found = (found.astype("<u4") << 16).view("<f4")
    return found.astype(np.float64), end
