"""Turn the rows of a cache into tensors for the losses.

Shape legend: N blocks or texts, T positions, P valid positions or target tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from storage.rows import beams, samples, soft_targets
from storage.rows.columns import stretches
from storage.rows.soft_targets import SoftTargetRows
from student.errors import MissingRowError
from student.losses.targets import SparseTargets

# PyTorch converts fewer elements than 2^15 in the calling thread alone.
_SERIAL_ELEMENTS = (1 << 15) - 1


@dataclass(frozen=True, kw_only=True)
class BlockBatch:
    """Blocks with targets at their P valid positions.

    input_ids, position_ids [N, T] int64; is_valid [N, T] bool: positions whose next token is in the same document and
    wanted;
    targets: the teacher's sparse targets of the P valid positions, in row-major order; entropy, label_logprob [P]
    float32: the teacher's entropy and its log-probability of the next token in nats, in the same order, None when the
    cache lacks them; lost_mass [P] float32: the probability of entries that are left out, because the student has no
    row for their ids. entropy is without what they add to it.
    """

    input_ids: Tensor
    position_ids: Tensor
    is_valid: Tensor
    targets: SparseTargets
    entropy: Tensor | None
    label_logprob: Tensor | None
    lost_mass: Tensor


@dataclass(frozen=True, kw_only=True)
class TextBatch:
    """Prompts with continuations. The padding is on the right, where a causal model does not see it.

    input_ids, position_ids [N, T] int64: the position of padding is −1; is_target [N, T] bool: positions that predict a
    token of the continuation; label_ids [P] int64: those tokens, in row-major order.
    """

    input_ids: Tensor
    position_ids: Tensor
    is_target: Tensor
    label_ids: Tensor


@dataclass(frozen=True, kw_only=True)
class BeamBatch:
    """The L candidates of B prompts, at most N per prompt, as one TextBatch of L sequences.

    prompt_index [L] int64: the candidate's prompt; slot [L] int64: its index among the candidates of that prompt;
    lengths [L] int64: its number of tokens; teacher_scores [B, N] float32: the teacher's scores in nats, −inf where a
    prompt has fewer than N candidates.
    """

    texts: TextBatch
    prompt_index: Tensor
    slot: Tensor
    lengths: Tensor
    teacher_scores: Tensor


def block_batch(
    batch: pa.RecordBatch,
    *,
    tail_weight: float | None,
    temperature: float,
    device: torch.device,
    num_rows: int | None = None,
) -> BlockBatch:
    """Return a record batch of soft targets as tensors.

    tail_weight: that of the cache, None when the tail was not sampled; temperature: include the tail's tempered mass
    at this temperature if the cache holds it; num_rows: rows of the student's vocabulary, None if it has one for every
    id. Raise MissingRowError when it has none for a token of the text.
    """
    rows = soft_targets.decode(batch)
    return block_tensors(rows, tail_weight=tail_weight, temperature=temperature, device=device, num_rows=num_rows)


def block_tensors(
    rows: SoftTargetRows,
    *,
    tail_weight: float | None,
    temperature: float,
    device: torch.device,
    num_rows: int | None = None,
    at_all_positions: bool = False,
) -> BlockBatch:
    """Return decoded rows as tensors; the arguments are those of block_batch.

    at_all_positions: return the targets of all N·T positions in place of the P valid ones.
    """
    is_valid = rows.is_valid_target
    is_chosen = np.ones_like(is_valid) if at_all_positions else is_valid
    require_rows(rows.input_ids, num_rows)
    targets = _sparse_targets(rows, is_chosen, tail_weight, temperature, device)
    entropy = None if rows.entropy is None else _tensor(rows.entropy[is_chosen], np.float32, device)
    lost_mass = torch.zeros(len(targets), device=device)
    if num_rows is not None and rows.ids.max(initial=0) >= num_rows:
        targets, lost_mass, lost_entropy = targets.without_rows_from(num_rows, temperature)
        entropy = None if entropy is None else entropy - lost_entropy
    return BlockBatch(
        input_ids=_tensor(rows.input_ids[:, :-1], np.int64, device),
        position_ids=_tensor(rows.positions[:, :-1], np.int64, device),
        is_valid=_tensor(is_valid, np.bool_, device),
        targets=targets,
        entropy=entropy,
        label_logprob=None
        if rows.label_logprob is None
        else _tensor(rows.label_logprob[is_chosen], np.float32, device),
        lost_mass=lost_mass,
    )


def require_rows(ids: NDArray[Any], num_rows: int | None) -> None:
    """Raise MissingRowError when a student with num_rows rows has none for a token id; None: it has all."""
    if num_rows is not None and (largest := int(ids.max(initial=0))) >= num_rows:
        raise MissingRowError(largest, num_rows)


def sample_batch(batch: pa.RecordBatch, device: torch.device, num_rows: int | None = None) -> TextBatch:
    """Return a record batch of sampled texts as tensors; num_rows: as in block_batch. Raise MissingRowError."""
    rows = samples.decode(batch)
    return _text_batch([row.prompt_ids for row in rows], [row.completion_ids for row in rows], device, num_rows)


def beam_batch(batch: pa.RecordBatch, device: torch.device, num_rows: int | None = None) -> BeamBatch:
    """Return a record batch of prompts with their beam candidates as tensors; num_rows: as in block_batch.

    Raise MissingRowError.
    """
    rows = beams.decode(batch)
    owners = [b for b, row in enumerate(rows) for _ in row.candidates]
    candidates = [candidate for row in rows for candidate in row.candidates]
    slots = [slot for row in rows for slot in range(len(row.candidates))]
    scores = torch.full((len(rows), max(slots, default=0) + 1), -torch.inf)
    scores[owners, slots] = torch.tensor([candidate.score for candidate in candidates])
    ids = [candidate.candidate_ids for candidate in candidates]
    return BeamBatch(
        texts=_text_batch([rows[b].prompt_ids for b in owners], ids, device, num_rows),
        prompt_index=torch.tensor(owners, dtype=torch.int64, device=device),
        slot=torch.tensor(slots, dtype=torch.int64, device=device),
        lengths=torch.tensor([len(candidate_ids) for candidate_ids in ids], dtype=torch.int64, device=device),
        teacher_scores=scores.to(device),
    )


def text_batch(
    prompt_ids: list[int], continuations: list[list[int]], device: torch.device, num_rows: int | None = None
) -> TextBatch:
    """Return one prompt with several continuations as tensors; num_rows: as in block_batch. Raise MissingRowError."""
    prompts = [np.array(prompt_ids)] * len(continuations)
    return _text_batch(prompts, [np.array(ids) for ids in continuations], device, num_rows)


def _text_batch(
    prompts: list[NDArray[Any]], continuations: list[NDArray[Any]], device: torch.device, num_rows: int | None
) -> TextBatch:
    prompt_lengths = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
    lengths = prompt_lengths + np.array([len(continuation) for continuation in continuations], dtype=np.int64)
    ids = np.zeros((len(prompts), lengths.max(initial=1)), dtype=np.int64)
    for row, (prompt, continuation) in enumerate(zip(prompts, continuations, strict=True)):
        ids[row, : lengths[row]] = np.concatenate([prompt, continuation])
    require_rows(ids, num_rows)
    place = np.arange(ids.shape[1] - 1)
    is_target = (place >= prompt_lengths[:, None] - 1) & (place < lengths[:, None] - 1)
    return TextBatch(
        input_ids=torch.from_numpy(ids[:, :-1].copy()).to(device),
        position_ids=torch.from_numpy(np.where(place < lengths[:, None] - 1, place, -1)).to(device),
        is_target=torch.from_numpy(is_target).to(device),
        label_ids=torch.from_numpy(ids[:, 1:][is_target]).to(device),
    )


def _sparse_targets(
    rows: SoftTargetRows,
    is_chosen: NDArray[np.bool_],
    tail_weight: float | None,
    temperature: float,
    device: torch.device,
) -> SparseTargets:
    head_size, tail_size = rows.head_size[is_chosen], rows.tail_size[is_chosen]
    head_starts = _starts(head_size + tail_size)
    is_head, is_drawn = _is_entry(head_size), _is_entry(tail_size)
    tempered = rows.tempered_tail_logmass.get(temperature)
    return SparseTargets(
        head_ids=_tensor(_pad(rows.ids, head_starts, is_head), np.int32, device),
        head_logprobs=_tensor(_pad(_float32(rows.logprobs), _starts(head_size), is_head), np.float32, device),
        is_head=_tensor(is_head, np.bool_, device),
        tail_logprob=_tensor(rows.tail_logprob[is_chosen], np.float32, device),
        tail_ids=_tensor(_pad(rows.ids, head_starts + head_size, is_drawn), np.int32, device),
        is_drawn=_tensor(is_drawn, np.bool_, device),
        tail_weight=tail_weight,
        tempered_tail_logmass=None if tempered is None else _tensor(tempered[is_chosen], np.float32, device),
        label_ids=_tensor(rows.input_ids[:, 1:][is_chosen], np.int64, device),
    )


def _starts(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.cumsum(sizes) - sizes


def _is_entry(sizes: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return a mask [P, largest size] that is True in the first sizes[p] columns of row p."""
    width = int(sizes.max(initial=0))
    return stretches(np.repeat([True, False], width), width - sizes, width)


def _pad(values: NDArray[Any], starts: NDArray[np.int64], is_entry: NDArray[np.bool_]) -> NDArray[Any]:
    """Return the values of each position, which begin at starts[p], as one row of [P, width], then zeros.

    Copy `width` values for every position and clear those of other positions: this is far faster than scattering by
    mask.
    """
    width = is_entry.shape[1]
    padded = stretches(np.concatenate([values, np.zeros(width, values.dtype)]), starts, width)
    padded *= is_entry
    return padded


def _tensor(array: NDArray[Any], dtype: type[np.generic], device: torch.device) -> Tensor:
    """Return the array as a tensor of this dtype on the device."""
    converted = _float32(array) if dtype is np.float32 else array.astype(dtype, order="C", copy=False)
    return torch.from_numpy(converted).to(device, non_blocking=True)


def _float32(values: NDArray[Any]) -> NDArray[np.float32]:
    """Return values [n], float16 in a cache, as float32; return an array of float32 as it is.

    PyTorch converts float16 ten times as fast as NumPy. It gets pieces that it converts in this thread alone: its other
    threads would afterwards spin on the cores that read ahead.
    """
    if values.dtype == np.float32:
        return values
    converted: NDArray[np.float32] = np.empty(len(values), np.float32)
    for start in range(0, len(values), _SERIAL_ELEMENTS):
        piece = values[start : start + _SERIAL_ELEMENTS].copy()  # PyTorch warns about arrays that must not be written
        torch.from_numpy(converted[start : start + _SERIAL_ELEMENTS]).copy_(torch.from_numpy(piece))
    return converted
