"""The beams kind: the teacher's best candidates for prompts, by beam search."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config import PrecomputeConfig
from pipeline.corpus.blocks import PromptSet
from pipeline.corpus.tokenization import TokenizedCorpus
from pipeline.decoding.beam_search import Finished, beam_search
from pipeline.decoding.sampling import batches_by_length
from pipeline.producers.prompts import PromptedProducer, naming_rows, take_prompts
from pipeline.teacher.model import Teacher
from storage.rows.beams import BeamRow, Candidate, encode, schema
from storage.text.completions import completion_text

# Prompts are sorted by length in windows of this many batches. Rows appear when their whole window is done.
_WINDOW_BATCHES = 4


class BeamsProducer(PromptedProducer):
    """Make record batches of beams, one row per prompt."""

    kind = "beams"
    most_probe_rows = 8

    def __init__(
        self, teacher: Teacher, config: PrecomputeConfig, prompts: dict[str, PromptSet], row_schema: pa.Schema
    ) -> None:
        super().__init__(teacher, config, prompts, row_schema)
        self._settings = config.beams
        self.tokens_per_row = self._settings.num_beams * (self.longest_prompt_tokens + self._settings.max_new_tokens)

    @classmethod
    def from_text(cls, teacher: Teacher, tokenized: TokenizedCorpus, config: PrecomputeConfig) -> BeamsProducer:
        """Return a producer for the prompts of the run. Raises NoPromptsError."""
        return cls(teacher, config, take_prompts(cls.kind, tokenized, config), schema(teacher.vocab_size))

    def num_rows(self, split: str) -> int:
        """Return the number of prompts in a split."""
        return len(self._prompts[split])

    def record_batches(self, split: str, start: int, stop: int, record_batch_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield rows [start, stop) in record batches."""
        rows = self._search_rows(split, start, stop)
        while batch := list(itertools.islice(rows, record_batch_rows)):
            yield encode(batch, self._schema)

    def _search_rows(self, split: str, start: int, stop: int) -> Iterator[BeamRow]:
        prompt_set = self._prompts[split]
        batch_prompts = max(1, self._batch_tokens // self.tokens_per_row)
        for window in range(start, stop, _WINDOW_BATCHES * batch_prompts):
            prompts = prompt_set.prompt_ids[window : min(window + _WINDOW_BATCHES * batch_prompts, stop)]
            candidates: dict[int, list[Candidate]] = {}
            for indices in batches_by_length(prompts, batch_prompts):
                with naming_rows(self.kind, split, window + indices):
                    found = self._search([prompts[i] for i in indices])
                candidates |= zip(indices.tolist(), found, strict=True)
            for i, prompt_ids in enumerate(prompts):
                yield BeamRow(
                    row_id=window + i,
                    prompt_id=prompt_set.prompt_id[window + i],
                    prompt_ids=prompt_ids,
                    candidates=candidates[i],
                )

    def _search(self, prompts: list[NDArray[Any]]) -> list[list[Candidate]]:
        """Return the candidates of each prompt, best first."""
        found = beam_search(
            self._teacher,
            prompts,
            num_beams=self._settings.num_beams,
            max_new_tokens=self._settings.max_new_tokens,
            length_penalty=self._settings.length_penalty,
        )
        return [
            [self._candidate(prompt_ids, f) for f in finished[: self._settings.num_candidates]]
            for prompt_ids, finished in zip(prompts, found, strict=True)
        ]

    def _candidate(self, prompt_ids: NDArray[Any], finished: Finished) -> Candidate:
        ends = finished.ids[-1] in self._teacher.end_ids
        return Candidate(
            candidate_ids=finished.ids,
            score=float(np.float32(finished.sum_logprob / len(finished.ids) ** self._settings.length_penalty)),
            sum_logprob=finished.sum_logprob,
            finish_reason="stop" if ends else "length",
            text=completion_text(self._teacher.tokenizer, prompt_ids, finished.ids),
        )
