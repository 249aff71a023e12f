"""How DistillKit compressed a set: its compression_config.yaml, or the same keys as JSON."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from storage.errors import first_line
from storage.importing.config import ImportConfig
from storage.importing.errors import ImportSourceError
from storage.importing.source_text import Floats, Int64s

_NAME = "compression_config.yaml"
_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
_SPECIAL_TERMS = ("sqrt", "exp")
_MOST_K = 1 << 20


@dataclass(frozen=True, kw_only=True)
class ResidualBin:
    """num_elements integers of element_bits bits, in units of a scale."""

    scale_dtype: str
    element_bits: int
    num_elements: int

    @property
    def packed_bytes(self) -> int:
        """Bytes of the integers of a position."""
        return -(-self.num_elements * self.element_bits // 8)

    def signed(self, values: Int64s) -> Floats:
        """Return what stored integers stand for: one bit for ±1, more for −2^(bits − 1) to 2^(bits − 1) − 1."""
        if self.element_bits == 1:
            return 2 * values.astype(np.float64) - 1
        return values.astype(np.float64) - (1 << (self.element_bits - 1))


@dataclass(frozen=True, kw_only=True)
class Compression:
    """The settings, under DistillKit's names; terms: its polynomial_terms, numbers as powers."""

    d: int
    k: int
    exact_k: int
    exact_dtype: str
    terms: tuple[int | str, ...]
    term_dtype: str
    residual_bins: tuple[ResidualBin, ...]
    delta_encoding: bool
    normalize_t: bool

    @property
    def id_bits(self) -> int:
        """Bits of an id."""
        return max(1, (self.d - 1).bit_length())

    @property
    def id_bytes(self) -> int:
        """Bytes of a position's ids."""
        return -(-self.k * self.id_bits // 8)

    @property
    def logprob_bytes(self) -> int:
        """Bytes of a position's log-probabilities."""
        numbers = self.exact_k * _BYTES[self.exact_dtype] + len(self.terms) * _BYTES[self.term_dtype]
        return numbers + sum(_BYTES[part.scale_dtype] + part.packed_bytes for part in self.residual_bins)

    @functools.cached_property
    def curve(self) -> Floats:
        """The value of each term at each of the k − exact_k places: [k − exact_k, terms]."""
        num_places = self.k - self.exact_k
        places = np.linspace(0, 1, num_places) if self.normalize_t else np.arange(num_places, dtype=np.float64)
        columns = [getattr(np, term)(places) if isinstance(term, str) else places**term for term in self.terms]
        return np.stack(columns, axis=1) if columns else np.zeros((num_places, 0))


def read_compression(config: ImportConfig) -> Compression:
    """Read --compression-config. Raise ImportSourceError when it is missing or not a configuration of DistillKit."""
    beside = config.source if config.source.is_dir() else config.source.parent
    path = config.compression_config or beside / _NAME
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        raise ImportSourceError(
            str(path), "missing: it says how the set was compressed; name it with --compression-config"
        ) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ImportSourceError(str(path), f"cannot be read ({first_line(error)})") from error
    # In a configuration for training, these keys stand below `logprob_compressor`.
    for name in ("teacher", "logprob_compressor"):
        content = content.get(name, content) if isinstance(content, dict) else content
    try:
        return _parsed(content)
    except (KeyError, TypeError, ValueError) as error:
        raise ImportSourceError(
            str(path), f"is not how DistillKit writes d, k, exact_k and the rest ({type(error).__name__}: {error})"
        ) from error


def _parsed(content: Any) -> Compression:
    found = Compression(
        d=_whole(content["d"], 2),
        k=_whole(content["k"], 1),
        exact_k=_whole(content["exact_k"], 0),
        exact_dtype=_dtype(content.get("exact_dtype", "float32")),
        terms=tuple(_term(term) for term in content.get("polynomial_terms") or []),
        term_dtype=_dtype(content.get("term_dtype", "float32")),
        residual_bins=tuple(_bin(part) for part in content.get("residual_bins") or []),
        delta_encoding=content.get("delta_encoding", True) is True,
        normalize_t=content.get("normalize_t", False) is True,
    )
    num_left = found.k - found.exact_k - sum(part.num_elements for part in found.residual_bins)
    if num_left < 0 or found.k > min(found.d, _MOST_K):
        raise ValueError("k is too small for exact_k and the bins, or larger than d")
    return found


def _bin(part: Any) -> ResidualBin:
    bits = _whole(part["element_bits"], 1)
    if bits > 62:
        raise ValueError(f"element_bits is {bits}, at most 62 are read")
    return ResidualBin(
        scale_dtype=_dtype(part["scale_dtype"]), element_bits=bits, num_elements=_whole(part["num_elements"], 1)
    )


def _whole(value: Any, least: int) -> int:
    if type(value) is not int or value < least:
        raise ValueError(f"{value!r} is no whole number of at least {least}")
    return value


def _dtype(value: Any) -> str:
    if value not in _BYTES:
        raise ValueError(f"{value!r} is none of {', '.join(_BYTES)}")
    return str(value)


def _term(value: Any) -> int | str:
    if value in _SPECIAL_TERMS:
        return str(value)
    return _whole(value, 0)
