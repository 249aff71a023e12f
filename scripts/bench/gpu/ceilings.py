"""Measure what the device can do at most: its arithmetic by a large product, its memory by a large copy.

Values are random, because products of zeros take less power and run faster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from scripts.bench.comparison import Comparison
from scripts.bench.config import BenchConfig
from scripts.support.measure import interleaved_seconds

PRODUCT, COPY = "product of two matrices", "copy in memory"


@dataclass(frozen=True, kw_only=True)
class Size:
    """Rows and columns of the matrices, elements of the copied array, and how often each is repeated."""

    side: int
    num_copied: int
    repetitions: int


_SIZES = {
    "full": Size(side=2048, num_copied=1 << 26, repetitions=2),
    "gpu": Size(side=8192, num_copied=1 << 30, repetitions=10),
    "tiny": Size(side=256, num_copied=1 << 20, repetitions=2),
}


def run(config: BenchConfig) -> Iterator[Comparison]:
    """Compare products in bfloat16 with products in float32, and copies in memory with copies to the host."""
    size = _SIZES[config.size]
    yield _products(size, config)
    yield _copies(size, config)


def _products(size: Size, config: BenchConfig) -> Comparison:
    def multiply(matrix: torch.Tensor, out: torch.Tensor) -> None:
        for _ in range(size.repetitions):
            torch.mm(matrix, matrix, out=out)

    matrix = torch.randn(size.side, size.side, device=config.device)
    variants = {
        name: partial(multiply, matrix.to(dtype), torch.empty_like(matrix, dtype=dtype))
        for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32))
    }
    ours, reference = _rates(variants, size.repetitions * 2 * size.side**3, config)
    return Comparison(
        what=PRODUCT, ours="bfloat16", reference="float32", our_values=ours, reference_values=reference,
        unit="FLOP/s", more_is_better=True,
    )  # fmt: skip


def _copies(size: Size, config: BenchConfig) -> Comparison:
    """Count the bytes read and written in memory, and the bytes that reach the host."""

    def copy(source: torch.Tensor, target: torch.Tensor) -> None:
        for _ in range(size.repetitions):
            target.copy_(source, non_blocking=True)

    source = torch.randn(size.num_copied, device=config.device)
    host = torch.empty(size.num_copied // 16, pin_memory=config.device == "cuda")
    variants = {
        "memory": partial(copy, source, torch.empty_like(source)),
        "host": partial(copy, source[: len(host)], host),
    }
    in_memory, to_host = _rates(variants, size.repetitions * source.nbytes, config)
    return Comparison(
        what=COPY, ours="read and written", reference="sent to the host",
        our_values=[2 * rate for rate in in_memory], reference_values=[rate / 16 for rate in to_host],
        unit="B/s", more_is_better=True,
    )  # fmt: skip


def _rates(variants: Mapping[str, Callable[[], None]], amount: float, config: BenchConfig) -> tuple[list[float], ...]:
    seconds = interleaved_seconds(variants, config.rounds, config.device)
    return tuple([amount / s for s in values] for values in seconds.values())
