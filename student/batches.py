"""From rows of a cache to tensors ready for the losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from storage import beams, samples, soft_targets
from storage.segments import position_ids
from storage.soft_targets import SoftTargetRows
from student.losses.targets import SparseTargets


@dataclass(frozen=True, kw_only=True)
class BlockBatch:
    """Blocks with targets at their P valid positions.

    input_ids, position_ids [N, T] int64; is_valid [N, T]; targets, entropy [P], label_logprob [P] (the
    teacher's, nats) belong to the valid positions in row-major order.
    """

    input_ids: Tensor
    position_ids: Tensor
    is_valid: Tensor
    targets: SparseTargets
    entropy: Tensor
    label_logprob: Tensor


@dataclass(frozen=True, kw_only=True)
class TextBatch:
    """Prompts with continuations, padded on the right where a causal model cannot see.

    input_ids, position_ids [N, T]; is_target [N, T]: positions that predict a token of the continuation;
    label_ids [P]: those tokens.
    """

    input_ids: Tensor
    position_ids: Tensor
    is_target: Tensor
    label_ids: Tensor


@dataclass(frozen=True, kw_only=True)
class BeamBatch:
    """Candidates of B prompts as one TextBatch of L sequences.

    prompt_index [L]: whose candidate; slot [L]: its place among that prompt's; lengths [L]: tokens;
    teacher_scores [B, N], −inf where a prompt has fewer candidates.
    """

    texts: TextBatch
    prompt_index: Tensor
    slot: Tensor
    lengths: Tensor
    teacher_scores: Tensor


def block_batch(
    batch: pa.RecordBatch, *, tail_weight: float | None, temperature: float, device: torch.device
) -> BlockBatch:
    """Soft targets to tensors; `temperature` chooses the tempered tail mass that goes along."""
    rows = soft_targets.decode(batch)
    is_valid = rows.is_valid_target
    tempered = rows.tempered_tail_logmass.get(temperature)
    block_size = is_valid.shape[1]
    positions = np.stack([position_ids(lengths)[:block_size] for lengths in rows.segment_lengths])
    labels = rows.input_ids[:, 1:][is_valid]

    def tensor(array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device, non_blocking=True)

    return BlockBatch(
        input_ids=tensor(rows.input_ids[:, :-1].astype(np.int64)),
        position_ids=tensor(positions),
        is_valid=tensor(is_valid),
        targets=_sparse_targets(rows, is_valid, labels, tail_weight, tempered, device),
        entropy=tensor(rows.entropy[is_valid].astype(np.float32)),
        label_logprob=tensor(rows.label_logprob[is_valid].astype(np.float32)),
    )


def sample_batch(batch: pa.RecordBatch, device: torch.device) -> TextBatch:
    """Sampled texts to tensors."""
    rows = samples.decode(batch)
    return _text_batch([row.prompt_ids for row in rows], [row.completion_ids for row in rows], device)


def beam_batch(batch: pa.RecordBatch, device: torch.device) -> BeamBatch:
    """Prompts and their candidates to tensors."""
    rows = beams.decode(batch)
    owners = [b for b, row in enumerate(rows) for _ in row.candidates]
    candidates = [candidate for row in rows for candidate in row.candidates]
    slots = [slot for row in rows for slot in range(len(row.candidates))]
    scores = torch.full((len(rows), max(slots) + 1), -torch.inf)
    scores[owners, slots] = torch.tensor([candidate.score for candidate in candidates])
    ids = [candidate.candidate_ids for candidate in candidates]
    return BeamBatch(
        texts=_text_batch([rows[b].prompt_ids for b in owners], ids, device),
        prompt_index=torch.tensor(owners, device=device),
        slot=torch.tensor(slots, device=device),
        lengths=torch.tensor([len(candidate_ids) for candidate_ids in ids], device=device),
        teacher_scores=scores.to(device),
    )


def text_batch(prompt_ids: list[int], continuations: list[list[int]], device: torch.device) -> TextBatch:
    """One prompt with several continuations."""
    return _text_batch([np.array(prompt_ids)] * len(continuations), [np.array(c) for c in continuations], device)


def _text_batch(prompts: list[NDArray[Any]], continuations: list[NDArray[Any]], device: torch.device) -> TextBatch:
    lengths = np.array([len(p) + len(c) for p, c in zip(prompts, continuations, strict=True)])
    prompt_lengths = np.array([len(p) for p in prompts])
    ids = np.zeros((len(prompts), lengths.max()), dtype=np.int64)
    for row, (prompt, continuation) in enumerate(zip(prompts, continuations, strict=True)):
        ids[row, : lengths[row]] = np.concatenate([prompt, continuation])
    place = np.arange(ids.shape[1] - 1)
    is_target = (place >= prompt_lengths[:, None] - 1) & (place < lengths[:, None] - 1)
    return TextBatch(
        input_ids=torch.from_numpy(ids[:, :-1].copy()).to(device),
        position_ids=torch.from_numpy(place).expand(len(ids), -1).to(device),
        is_target=torch.from_numpy(is_target).to(device),
        label_ids=torch.from_numpy(ids[:, 1:][is_target]).to(device),
    )


def _sparse_targets(
    rows: SoftTargetRows,
    is_valid: NDArray[np.bool_],
    labels: NDArray[Any],
    tail_weight: float | None,
    tempered: NDArray[Any] | None,
    device: torch.device,
) -> SparseTargets:
    head_size, tail_size = rows.head_size[is_valid], rows.tail_size[is_valid]
    in_head = soft_targets.head_mask(rows)
    ids = rows.ids.astype(np.int64)
    head_ids, is_head = _pad(ids[in_head], head_size)
    head_logprobs, _ = _pad(rows.logprobs.astype(np.float32), head_size)
    tail_ids, is_drawn = _pad(ids[~in_head], tail_size)

    def tensor(array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    return SparseTargets(
        head_ids=tensor(head_ids),
        head_logprobs=tensor(head_logprobs),
        is_head=tensor(is_head),
        tail_logprob=tensor(rows.tail_logprob[is_valid].astype(np.float32)),
        tail_ids=tensor(tail_ids),
        is_drawn=tensor(is_drawn),
        tail_weight=tail_weight,
        tempered_tail_logmass=None if tempered is None else tensor(tempered[is_valid].astype(np.float32)),
        label_ids=tensor(labels.astype(np.int64)),
    )


def _pad(values: NDArray[Any], sizes: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Ragged values to [P, most] with zeros behind, and where values stand."""
    is_value = np.arange(sizes.max(initial=0)) < sizes[:, None]
    padded = np.zeros(is_value.shape, dtype=values.dtype)
    padded[is_value] = values
    return padded, is_value
