"""The beams kind: the teacher's best candidates for prompts, found by transformers' beam search.

The search's own scores are not stored: every candidate is scored again by one teacher-forced pass in
float32, which is what a student's score will be compared with.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig

from pipeline.batch_size import choose_batch_tokens
from pipeline.blocks import PromptSet
from pipeline.config import PrecomputeConfig
from pipeline.decoding import batches_by_length
from pipeline.teacher import Teacher
from storage.beams import BeamRow, Candidate, encode

_CHUNK_POSITIONS = 256
# Record batches whose prompts are grouped by length, and that a progress bar waits for.
_WINDOW_BATCHES = 8


class BeamsProducer:
    """Makes record batches of beams, one row per prompt."""

    def __init__(
        self, teacher: Teacher, config: PrecomputeConfig, prompts: dict[str, PromptSet], row_schema: pa.Schema
    ) -> None:
        self._teacher, self._prompts, self._schema = teacher, prompts, row_schema
        self._config, self._settings = config, config.beams
        self._batch_tokens = choose_batch_tokens(teacher, config)
        self.longest_prompt_tokens = max(map(len, (ids for s in prompts.values() for ids in s.prompt_ids)), default=0)
        self.tokens_per_row = self._settings.num_beams * (self.longest_prompt_tokens + self._settings.max_new_tokens)

    def num_rows(self, split: str) -> int:
        """Prompts in a split."""
        return len(self._prompts[split])

    def record_batches(self, split: str, start: int, stop: int, record_batch_rows: int) -> Iterator[pa.RecordBatch]:
        """Rows [start, stop) in record batches."""
        for window in range(start, stop, _WINDOW_BATCHES * record_batch_rows):
            rows = self._search_rows(split, window, min(window + _WINDOW_BATCHES * record_batch_rows, stop))
            for first in range(0, len(rows), record_batch_rows):
                yield encode(rows[first : first + record_batch_rows], self._schema)

    def _search_rows(self, split: str, start: int, stop: int) -> list[BeamRow]:
        prompt_set = self._prompts[split]
        prompts = prompt_set.prompt_ids[start:stop]
        found: dict[int, BeamRow] = {}
        for same_length in _runs_of_length(prompts, max(1, self._batch_tokens // self.tokens_per_row)):
            candidates = self._search([prompts[i] for i in same_length])
            for i, row_candidates in zip(same_length.tolist(), candidates, strict=True):
                found[i] = BeamRow(
                    row_id=start + i,
                    prompt_id=prompt_set.prompt_id[start + i],
                    prompt_ids=prompts[i],
                    candidates=row_candidates,
                )
        return [found[i] for i in range(len(prompts))]

    @torch.inference_mode()
    def _search(self, prompts: list[NDArray[Any]]) -> list[list[Candidate]]:
        """Candidates of prompts of one length, best first."""
        settings, eos = self._settings, self._teacher.tokenizer.eos_token_id
        prompt_ids = self._teacher.to_device(np.stack(prompts))
        # transformers fills what is not said below from settings shipped with the checkpoint; these are none of ours.
        self._teacher.model.generation_config = GenerationConfig()
        sequences = self._teacher.model.generate(
            input_ids=prompt_ids,
            attention_mask=torch.ones_like(prompt_ids),
            generation_config=GenerationConfig(
                num_beams=settings.num_beams,
                num_return_sequences=settings.num_candidates,
                do_sample=False,
                max_new_tokens=settings.max_new_tokens,
                length_penalty=settings.length_penalty,
                eos_token_id=eos,
                pad_token_id=eos or 0,
            ),
        )
        continuations = sequences[:, prompt_ids.shape[1] :].cpu().numpy()
        per_prompt = continuations.reshape(len(prompts), settings.num_candidates, -1)
        distinct = [_distinct([_until_end(ids, eos) for ids in candidates]) for candidates in per_prompt]
        sums = iter(self._sum_logprobs(prompts, distinct))
        return [
            sorted(
                (self._candidate(ids, next(sums)) for ids in candidates),
                key=lambda candidate: (-candidate.score, candidate.candidate_ids.tolist()),
            )
            for candidates in distinct
        ]

    def _candidate(self, ids: NDArray[np.int64], sum_logprob: float) -> Candidate:
        ends = ids[-1] == self._teacher.tokenizer.eos_token_id
        return Candidate(
            candidate_ids=ids,
            score=float(np.float32(sum_logprob / len(ids) ** self._settings.length_penalty)),
            sum_logprob=sum_logprob,
            finish_reason="stop" if ends else "length",
            text=self._teacher.decode(ids),
        )

    def _sum_logprobs(self, prompts: list[NDArray[Any]], candidates: list[list[NDArray[np.int64]]]) -> list[float]:
        """Teacher-forced log probability of every candidate given its prompt, in nats."""
        sequences = [np.concatenate([p, ids]) for p, row in zip(prompts, candidates, strict=True) for ids in row]
        longest = max(map(len, sequences))
        # Padding stands on the right, where a causal model cannot see it.
        input_ids = np.stack([np.pad(ids, (0, longest - len(ids))) for ids in sequences])
        hidden = self._teacher.hidden(input_ids[:, :-1], [np.array([longest])] * len(sequences))
        prompt_length = len(prompts[0])
        row, position = np.nonzero(
            (np.arange(longest - 1) >= prompt_length - 1)
            & (np.arange(longest - 1) < np.array([[len(ids) - 1] for ids in sequences]))
        )
        labels = self._teacher.to_device(input_ids[row, position + 1])
        hidden_PD = hidden[row, position]
        logprobs = torch.cat(
            [
                torch.log_softmax(self._teacher.logits(hidden_PD[first : first + _CHUNK_POSITIONS]), dim=1)
                .gather(1, labels[first : first + _CHUNK_POSITIONS, None])[:, 0]
                .double()
                for first in range(0, len(labels), _CHUNK_POSITIONS)
            ]
        )
        sums = np.bincount(row, weights=logprobs.cpu().numpy(), minlength=len(sequences))
        return [min(total, 0.0) for total in sums.tolist()]


def _runs_of_length(prompts: list[NDArray[Any]], batch_rows: int) -> Iterator[NDArray[np.int64]]:
    """Batches of prompts of one length: beam search in transformers pads results, not prompts."""
    for indices in batches_by_length(prompts, len(prompts)):
        lengths = np.array([len(prompts[i]) for i in indices])
        for length in np.unique(lengths):
            same = indices[lengths == length]
            yield from (same[first : first + batch_rows] for first in range(0, len(same), batch_rows))


def _until_end(ids: NDArray[np.int64], eos: int | None) -> NDArray[np.int64]:
    """Tokens up to and with the first end-of-text; what follows is padding."""
    if eos is None or eos not in ids:
        return ids
    return ids[: np.flatnonzero(ids == eos)[0] + 1]


def _distinct(candidates: list[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
    return list({ids.tobytes(): ids for ids in candidates}.values())
