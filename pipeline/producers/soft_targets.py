"""The soft_targets kind: run the teacher over blocks and make its distributions sparse, position by position."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from pipeline.config import PrecomputeConfig
from pipeline.corpus.blocks import Blocks
from pipeline.corpus.tokenization import TokenizedCorpus
from pipeline.errors import NoWantedTargetError, TeacherOutputError
from pipeline.producers.producer import Producer
from pipeline.producers.sparsify import PaddedTargets, SparseTargets, sparsify
from pipeline.teacher.batch_size import choose_batch_tokens, in_passes
from pipeline.teacher.model import Teacher
from storage.draws import hash_uniform
from storage.records.identity import SPLITS
from storage.rows.segments import valid_targets
from storage.rows.soft_targets import SoftTargetRows, encode, schema

# Bytes of float32 logits at a time. The matrix product is faster with many positions. On a CPU, the steps after it are
# faster with fewer: temporaries above 32 MB cost page faults.
_PRODUCT_BYTES_ON_CPU, _CHUNK_BYTES_ON_CPU = 96 << 20, 24 << 20
_PRODUCT_BYTES_ELSEWHERE = 1 << 30
_TAIL_DRAW = 5
# One encoder thread keeps up with a large teacher. A small teacher on a fast GPU needs a few.
_NUM_ENCODERS = 3


class SoftTargetsProducer(Producer):
    """Make record batches of soft targets, one row per block."""

    kind = "soft_targets"
    most_probe_rows = 64

    def __init__(
        self, teacher: Teacher, config: PrecomputeConfig, blocks: dict[str, Blocks], row_schema: pa.Schema
    ) -> None:
        self._teacher, self._config, self._blocks, self._schema = teacher, config, blocks, row_schema
        self._batch_tokens = choose_batch_tokens(teacher, config)
        self._buffer_CV: torch.Tensor | None = None
        self.tokens_per_row = config.block_size + 1
        if "is_wanted" in row_schema.names:
            self.settings_of_text = {"is_wanted": True}

    @classmethod
    def context_needed(cls, config: PrecomputeConfig, num_beginning: int) -> tuple[str, int]:
        """Return the flag for the tokens of a block that the teacher reads, and these tokens."""
        return "--block-size", config.block_size

    @classmethod
    def from_text(cls, teacher: Teacher, tokenized: TokenizedCorpus, config: PrecomputeConfig) -> SoftTargetsProducer:
        """Return a producer for all blocks of the text. Raises NoWantedTargetError."""
        train = tokenized.documents["train"]
        if train.is_wanted is not None and not train.is_wanted.any():
            raise NoWantedTargetError(config.data, train.num_tokens)
        row_schema = schema(
            teacher.vocab_size,
            config.block_size,
            config.soft_targets.temperatures,
            is_wanted=tokenized.blocks["train"].marks_wanted,
        )
        return cls(teacher, config, tokenized.blocks, row_schema)

    def num_rows(self, split: str) -> int:
        """Return the number of blocks in a split."""
        return len(self._blocks[split])

    def record_batches(self, split: str, start: int, stop: int, record_batch_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield rows [start, stop) in record batches. The teacher reads about --batch-tokens tokens at a time."""
        rows_per_pass = self._rows_per_pass
        if rows_per_pass > record_batch_rows:
            rows_per_pass -= rows_per_pass % record_batch_rows
        passes = in_passes(functools.partial(self._run, split), start, stop, rows_per_pass)
        return _of_rows(_encoded_behind(passes), record_batch_rows)

    def online_work(self, num_rows: int) -> Callable[[], None]:
        """Return the forward passes and the logits, without making them sparse."""

        def work() -> None:
            collections.deque(in_passes(self._forward_only, 0, num_rows, self._rows_per_pass), maxlen=0)

        return work

    @property
    def _rows_per_pass(self) -> int:
        return max(1, self._batch_tokens // self._config.block_size)

    @torch.inference_mode()
    def _forward_only(self, start: int, stop: int) -> int:
        """Run rows [start, stop) through body and head. Return how many they are."""
        blocks = self._blocks["train"]
        lengths = [blocks.segment_lengths(row) for row in range(start, stop)]
        hidden_NTD = self._teacher.hidden(blocks.input_ids(start, stop)[:, :-1], lengths)
        is_valid_NT = _valid_targets(blocks, start, stop, lengths)
        for hidden_TD, is_valid_T in zip(hidden_NTD, is_valid_NT, strict=True):
            self._teacher.logits(hidden_TD[is_valid_T])
        return stop - start

    @torch.inference_mode()
    def _run(self, split: str, start: int, stop: int) -> Callable[[], pa.RecordBatch]:
        """Run the teacher on rows [start, stop). Return a function that encodes them, which any thread may call."""
        blocks = self._blocks[split]
        input_ids = blocks.input_ids(start, stop)
        segment_lengths = [blocks.segment_lengths(block) for block in range(start, stop)]
        is_valid = _valid_targets(blocks, start, stop, segment_lengths)
        hidden_PD = self._hidden_at(is_valid, input_ids[:, :-1], segment_lengths)
        row_index, position = np.nonzero(is_valid)
        seed = self._config.seed
        uniforms = hash_uniform(seed, _TAIL_DRAW, SPLITS.index(split), start + row_index, position)
        chunks = self._sparse_chunks(hidden_PD, input_ids[:, 1:][is_valid], uniforms)
        wait_for_copies = self._teacher.mark_time()

        def encoded() -> pa.RecordBatch:
            wait_for_copies()
            parts = [chunk.flatten() for chunk in chunks]
            _refuse_unusable(split, start, is_valid, parts)
            settings = self._config.soft_targets
            rows = _rows(start, input_ids, segment_lengths, is_valid, parts, settings.temperatures)
            return encode(rows, self._schema, settings.mantissa_bits, settings.kept_scalar_bits)

        return encoded

    def _hidden_at(
        self, is_valid: NDArray[np.bool_], input_ids_NT: NDArray[Any], segment_lengths: list[NDArray[np.int64]]
    ) -> torch.Tensor:
        """Return the hidden states [P, D] at the valid targets. Blocks without one cost no pass."""
        rows = np.flatnonzero(is_valid.any(axis=1))
        if not len(rows):
            return torch.empty((0, 0), device=self._teacher.device)
        hidden_NTD = self._teacher.hidden(input_ids_NT[rows], [segment_lengths[row] for row in rows])
        return hidden_NTD[is_valid[rows]]

    def _sparse_chunks(
        self, hidden_PD: torch.Tensor, label_ids_P: NDArray[Any], uniforms_P: NDArray[np.float64]
    ) -> list[PaddedTargets]:
        settings = self._config.soft_targets
        labels = self._teacher.to_device(label_ids_P)
        # The draw needs float64, although it is slow on some accelerators.
        uniforms = torch.from_numpy(uniforms_P).to(self._teacher.device)
        found: list[PaddedTargets] = []
        for first, logits_CV in self._logits_in_chunks(hidden_PD):
            rows = slice(first, first + len(logits_CV))
            found.append(
                sparsify(
                    logits_CV,
                    labels[rows],
                    uniforms[rows],
                    top_k=settings.top_k,
                    top_p=settings.top_p,
                    tail_weight=settings.tail_weight,
                    temperatures=settings.temperatures,
                ).to_host()
            )
        return found

    def _logits_buffer(self, num_rows: int) -> torch.Tensor | None:
        """Return memory for logits [num_rows, V] that all passes reuse: new memory pages cost as much as a softmax.

        Return None on a GPU, where PyTorch itself reuses memory.
        """
        if self._teacher.device.type != "cpu":
            return None
        if self._buffer_CV is None or len(self._buffer_CV) < num_rows:
            self._buffer_CV = torch.empty((num_rows, self._teacher.vocab_size), dtype=torch.float32)
        return self._buffer_CV[:num_rows]

    def _logits_in_chunks(self, hidden_PD: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield each chunk's first position and logits [C, V], which are valid until the next chunk is taken."""
        row_bytes = 4 * self._teacher.vocab_size
        on_cpu = self._teacher.device.type == "cpu"
        product_rows = max(1, (_PRODUCT_BYTES_ON_CPU if on_cpu else _PRODUCT_BYTES_ELSEWHERE) // row_bytes)
        chunk_rows = max(1, _CHUNK_BYTES_ON_CPU // row_bytes) if on_cpu else product_rows
        for start in range(0, len(hidden_PD), product_rows):
            part_PD = hidden_PD[start : start + product_rows]
            logits_PV = self._teacher.logits(part_PD, self._logits_buffer(len(part_PD)))
            for first in range(0, len(part_PD), chunk_rows):
                yield start + first, logits_PV[first : first + chunk_rows]


def _valid_targets(
    blocks: Blocks, start: int, stop: int, segment_lengths: list[NDArray[np.int64]]
) -> NDArray[np.bool_]:
    """Return which targets of blocks [start, stop) lie in one segment and are wanted: [stop - start, T]."""
    is_valid = np.stack([valid_targets(lengths) for lengths in segment_lengths])
    is_wanted = blocks.is_wanted(start, stop)
    return is_valid if is_wanted is None else is_valid & is_wanted


def _encoded_behind(passes: Iterator[Callable[[], pa.RecordBatch]]) -> Iterator[pa.RecordBatch]:
    """Encode passes in threads while the teacher runs the next ones. Yield them in order."""
    with ThreadPoolExecutor(_NUM_ENCODERS, thread_name_prefix="teachonce-encoder") as pool:
        waiting: collections.deque[Future[pa.RecordBatch]] = collections.deque()
        for encoded in passes:
            waiting.append(pool.submit(encoded))
            if len(waiting) > _NUM_ENCODERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _of_rows(batches: Iterator[pa.RecordBatch], num_rows: int) -> Iterator[pa.RecordBatch]:
    """Yield the same rows in record batches of num_rows rows; the last one may be shorter."""
    pending: list[pa.RecordBatch] = []
    for batch in batches:
        pending.append(batch)
        num_pending = sum(batch.num_rows for batch in pending)
        if num_pending >= num_rows:
            table = pa.Table.from_batches(pending).combine_chunks()
            whole = num_pending - num_pending % num_rows
            yield from table.slice(0, whole).to_batches(max_chunksize=num_rows)
            pending = table.slice(whole).to_batches()
    if pending:
        yield from pa.Table.from_batches(pending).combine_chunks().to_batches()


def _refuse_unusable(split: str, start: int, is_valid: NDArray[np.bool_], parts: list[SparseTargets]) -> None:
    """Raise TeacherOutputError for the first target without a distribution, or whose token has probability 0."""
    row_index = start + np.nonzero(is_valid)[0]
    for part in parts:
        rows, row_index = row_index[: len(part.largest_logit)], row_index[len(part.largest_logit) :]
        for position in np.flatnonzero(~np.isfinite(part.largest_logit) | ~np.isfinite(part.label_logprob))[:1]:
            raise TeacherOutputError("soft_targets", split, int(rows[position]), float(part.largest_logit[position]))


def _rows(
    start: int,
    input_ids: NDArray[Any],
    segment_lengths: list[NDArray[np.int64]],
    is_valid: NDArray[np.bool_],
    parts: list[SparseTargets],
    temperatures: tuple[float, ...],
) -> SoftTargetRows:
    """Join the chunks and put them at the valid targets. Other targets get no entries, and zeros.

    There are no chunks when no target is valid.
    """

    def joined(arrays: list[NDArray[Any]], dtype: Any) -> NDArray[Any]:
        return np.concatenate([np.empty(0, dtype), *arrays])

    def spread(arrays: list[NDArray[Any]], dtype: Any) -> NDArray[Any]:
        values = np.zeros(is_valid.shape, dtype=dtype)
        values[is_valid] = joined(arrays, dtype)
        return values

    return SoftTargetRows(
        row_id=np.arange(start, start + len(input_ids)),
        input_ids=input_ids,
        segment_lengths=segment_lengths,
        is_wanted=is_valid,  # encoded only when the schema has the column
        head_size=spread([part.head_size for part in parts], np.int64),
        tail_size=spread([part.tail_size for part in parts], np.int64),
        ids=joined([part.ids for part in parts], np.int64),
        logprobs=joined([part.logprobs for part in parts], np.float32),
        tail_logprob=spread([part.tail_logprob for part in parts], np.float32),
        entropy=spread([part.entropy for part in parts], np.float32),
        label_logprob=spread([part.label_logprob for part in parts], np.float32),
        tempered_tail_logmass={
            t: spread([part.tempered_tail_logmass[t] for part in parts], np.float32) for t in temperatures if t != 1.0
        },
    )
