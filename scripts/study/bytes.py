"""Measure the bytes of soft targets on disk for several target settings, roundings, orders and compression levels.

    python -m scripts.study.bytes --teacher gpt2 --data FILE
    python -m scripts.study.bytes --teacher DIR --data stdlib --entropy-nats 3.3

Prints tables in Markdown. `--entropy-nats` scales the logits until the teacher's mean entropy has the given value.
Bytes grow with entropy, and a small teacher is less certain than the teachers that a cache is made for.

Shape legend: P positions, C positions of a chunk, V vocabulary, H head entries.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import PrecomputeConfig
from pipeline.job import lay_out, load_teacher_and_source
from pipeline.plan import RECORD_BATCH_ROWS
from pipeline.producers.sparsify import SparseTargets, sparsify
from scripts.study.stored_bytes import PAYLOAD, as_record_batch, compressed_bytes
from scripts.support.report import markdown_table
from storage.command import run_command
from storage.draws import hash_uniform
from storage.rows.bit_rounding import round_float16
from storage.shards.shard import ZSTD_LEVEL

_POSITIONS_PER_CHUNK = 128
_BASE_TOP_K, _BASE_DENOMINATOR, _BASE_BITS = 1, 32, 6
_TOP_KS = (0, 1, 4, 16)
_DENOMINATORS = (8, 16, 32, 64)


@dataclass(frozen=True, kw_only=True)
class BytesConfig:
    """Teacher and text to measure on."""

    teacher: str
    """Teacher, given as for teachonce-precompute --teacher."""
    data: str
    """Text, given as for teachonce-precompute --data."""
    entropy_nats: float | None = None
    """Scale the logits to this mean entropy in nats. None leaves them as they are."""
    num_blocks: int = 64
    """Number of blocks to measure."""
    block_size: int = 128
    """Targets per block."""
    device: str = "auto"
    """Device of the teacher, given as for teachonce-precompute --device."""


class Positions:
    """Hidden states [P, D] of some blocks. Logits are computed from them chunk by chunk."""

    def __init__(self, config: BytesConfig, work_dir: Path) -> None:
        loaded = load_teacher_and_source(
            PrecomputeConfig(
                teacher=config.teacher,
                data=config.data,
                out=work_dir / "cache",
                kinds=("soft_targets",),
                block_size=config.block_size,
                device=config.device,
                quiet=True,
            )
        )
        job = lay_out(loaded, work_dir)
        self._teacher = job.teacher
        self.vocab_size = job.teacher.vocab_size
        blocks = job.tokenized.blocks["train"]
        num_blocks = min(config.num_blocks, len(blocks))
        self.input_ids = np.asarray(blocks.input_ids(0, num_blocks), dtype=np.int64)
        with torch.inference_mode():
            self._hidden_PD = torch.cat(
                [
                    job.teacher.hidden(self.input_ids[row : row + 1, :-1], [blocks.segment_lengths(row)])[0]
                    for row in range(num_blocks)
                ]
            )
        self.scale = 1.0 if config.entropy_nats is None else self._scale_to(config.entropy_nats)

    def logits(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield chunks of positions and their logits [C, V]."""
        for start in range(0, len(self._hidden_PD), _POSITIONS_PER_CHUNK):
            part = slice(start, start + _POSITIONS_PER_CHUNK)
            with torch.inference_mode():
                yield part, self._teacher.logits(self._hidden_PD[part]) * self.scale

    def _scale_to(self, entropy_nats: float) -> float:
        """Find the scale by bisection on every seventh position. Together these cover all offsets in a block."""
        sample_CD = self._hidden_PD[::7]
        low, high = 0.05, 20.0
        for _ in range(24):
            middle = (low * high) ** 0.5
            low, high = (middle, high) if self._mean_entropy(sample_CD, middle) > entropy_nats else (low, middle)
        return low

    def _mean_entropy(self, hidden_CD: Tensor, scale: float) -> float:
        total = 0.0
        for start in range(0, len(hidden_CD), _POSITIONS_PER_CHUNK):
            with torch.inference_mode():
                logits_CV = self._teacher.logits(hidden_CD[start : start + _POSITIONS_PER_CHUNK]) * scale
            total += float(torch.special.entr(torch.softmax(logits_CV, dim=1)).sum())
        return total / len(hidden_CD)


def main() -> None:
    """Measure and print."""
    run_command(lambda: _run(tyro.cli(BytesConfig, description=__doc__)))


def _run(config: BytesConfig) -> int:
    with tempfile.TemporaryDirectory() as work_dir:
        positions = Positions(config, Path(work_dir))
        settings = [(k, d) for d in (*_DENOMINATORS, None) for k in _TOP_KS if k or d]
        targets = sparse_targets(positions, settings)
    base = targets[_BASE_TOP_K, _BASE_DENOMINATOR]
    shown = "" if config.entropy_nats is None else f" (logits scaled by {positions.scale:.3f})"
    print(f"V = {positions.vocab_size:,}, {len(base.entropy):,} positions")
    print(f"mean entropy {base.entropy.mean():.2f} nats{shown}")
    print(f"\n{_settings_table(targets, positions, config.block_size)}\n\n{_base_tables(base, positions, config)}")
    return 0


def sparse_targets(
    positions: Positions, settings: list[tuple[int, int | None]]
) -> dict[tuple[int, int | None], SparseTargets]:
    """Return the targets of all positions for each (top_k, 1/τ)."""
    labels_P = torch.from_numpy(positions.input_ids[:, 1:].reshape(-1).copy())
    uniforms_P = torch.from_numpy(hash_uniform(0, np.arange(len(labels_P))))
    return {
        (top_k, denominator): _sparse(positions, labels_P, uniforms_P, top_k, denominator)
        for top_k, denominator in settings
    }


def _sparse(
    positions: Positions, labels_P: Tensor, uniforms_P: Tensor, top_k: int, denominator: int | None
) -> SparseTargets:
    parts = [
        sparsify(
            logits_CV,
            labels_P[part].to(logits_CV.device),
            uniforms_P[part].to(logits_CV.device),
            top_k=top_k,
            tail_weight=None if denominator is None else 1 / denominator,
            temperatures=(1.0,),
        ).flatten()
        for part, logits_CV in positions.logits()
    ]
    return _join(parts)


def _join(parts: list[SparseTargets]) -> SparseTargets:
    arrays = {
        f.name: np.concatenate([getattr(part, f.name) for part in parts])
        for f in fields(SparseTargets)
        if f.name != "tempered_tail_logmass"
    }
    return SparseTargets(**arrays, tempered_tail_logmass={})


def _settings_table(targets: dict[tuple[int, int | None], SparseTargets], positions: Positions, block_size: int) -> str:
    heads = ("top_k", "τ", "head entries", "draws", "ids", "logprobs", "sizes", "payload", "whole row")
    columns = (["ids"], ["logprobs"], ["head_size", "tail_size"], PAYLOAD)
    rows = []
    for (top_k, denominator), found in targets.items():
        batch = as_record_batch(found, positions.vocab_size, block_size, _BASE_BITS, positions.input_ids)

        def per_token(names: list[str], batch: Any = batch, found: SparseTargets = found) -> str:
            return f"{compressed_bytes(batch.select(names)) / len(found.entropy):.1f}"

        weight = "none" if denominator is None else f"1/{denominator}"
        entries = (f"{sizes.mean():.1f}" for sizes in (found.head_size, found.tail_size))
        rows.append([str(top_k), weight, *entries, *map(per_token, columns), per_token(batch.schema.names)])
    return markdown_table(heads, rows)


def _base_tables(base: SparseTargets, positions: Positions, config: BytesConfig) -> str:
    def batch_of(found: SparseTargets, bits: int) -> Any:
        return as_record_batch(found, positions.vocab_size, config.block_size, bits, positions.input_ids)

    def payload(batch: Any, rows: int = RECORD_BATCH_ROWS, level: int = ZSTD_LEVEL) -> str:
        return f"{compressed_bytes(batch.select(PAYLOAD), rows, level) / len(base.entropy):.2f}"

    usual = batch_of(base, _BASE_BITS)
    ordered = batch_of(_by_probability(base), _BASE_BITS)
    rows = [
        ("usual", f"{_BASE_BITS} bits, id order, level {ZSTD_LEVEL}, {RECORD_BATCH_ROWS} rows", payload(usual), ""),
        *(
            ("mantissa bits", str(bits), payload(batch_of(base, bits)), f"{rounding_kl(base, bits):.1e}")
            for bits in (3, 4, 5, 6, 7, 10)
        ),
        ("order in a position", "most probable first", payload(ordered), ""),
        *(("zstd level", str(level), payload(usual, level=level), "") for level in (1, 3, 9, 15)),
        *(("rows in a record batch", str(count), payload(usual, rows=count), "") for count in (4, 8, 16, 64)),
    ]
    title = f"top_k {_BASE_TOP_K}, τ 1/{_BASE_DENOMINATOR}; payload in bytes per token, the usual setting first:"
    return f"{title}\n\n{markdown_table(('what', 'value', 'payload', 'KL from rounding, nats'), rows)}"


def rounding_kl(found: SparseTargets, mantissa_bits: int) -> float:
    """Return the mean KL in nats from exact to rounded values over head and tail, both normalised to mass 1."""
    logprobs, position = found.logprobs.astype(np.float64), _position_of_head(found)
    rounded = round_float16(found.logprobs, mantissa_bits).astype(np.float64)
    tail = found.tail_logprob.astype(np.float64)
    rounded_tail = round_float16(found.tail_logprob, 10).astype(np.float64)

    def per_position(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.bincount(position, weights=values, minlength=len(tail)).astype(np.float64)

    mass = per_position(np.exp(logprobs)) + np.exp(tail)
    rounded_mass = per_position(np.exp(rounded)) + np.exp(rounded_tail)
    finite = tail > -np.inf
    difference = np.where(finite, tail, 0) - np.where(finite, rounded_tail, 0)
    total = per_position(np.exp(logprobs) * (logprobs - rounded)) + np.exp(tail) * difference
    return float((total / mass - np.log(mass) + np.log(rounded_mass)).mean())


def _by_probability(found: SparseTargets) -> SparseTargets:
    """Return the same targets with each position's head in descending order of probability."""
    order = np.lexsort((-found.logprobs, _position_of_head(found)))
    sizes = np.stack([found.head_size, found.tail_size], axis=1).reshape(-1)
    in_head = np.repeat(np.tile([True, False], len(found.head_size)), sizes)
    ids = found.ids.copy()
    ids[in_head] = found.ids[in_head][order]
    return replace(found, ids=ids, logprobs=found.logprobs[order])


def _position_of_head(found: SparseTargets) -> NDArray[np.int64]:
    return np.repeat(np.arange(len(found.head_size)), found.head_size)


if __name__ == "__main__":
    main()
