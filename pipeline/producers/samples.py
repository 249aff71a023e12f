"""The samples kind: texts drawn from the teacher for prompts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from pipeline.config import PrecomputeConfig
from pipeline.corpus.blocks import PromptSet
from pipeline.corpus.tokenization import TokenizedCorpus
from pipeline.decoding.sampling import stream_completions
from pipeline.producers.prompts import PromptedProducer, naming_rows, take_prompts
from pipeline.teacher.model import Teacher
from storage.draws import hash_u64
from storage.records.identity import SPLITS
from storage.rows.samples import SampleRow, encode, schema
from storage.text.completions import completion_text

_SAMPLE_SEED = 6


class SamplesProducer(PromptedProducer):
    """Make record batches of samples. Row r is sample r mod per_prompt of prompt r div per_prompt."""

    kind = "samples"
    most_probe_rows = 16

    def __init__(
        self, teacher: Teacher, config: PrecomputeConfig, prompts: dict[str, PromptSet], row_schema: pa.Schema
    ) -> None:
        super().__init__(teacher, config, prompts, row_schema)
        self._settings = config.samples
        self.tokens_per_row = self.longest_prompt_tokens + self._settings.max_new_tokens

    @classmethod
    def from_text(cls, teacher: Teacher, tokenized: TokenizedCorpus, config: PrecomputeConfig) -> SamplesProducer:
        """Return a producer for the prompts of the run. Raises NoPromptsError."""
        return cls(teacher, config, take_prompts(cls.kind, tokenized, config), schema(teacher.vocab_size))

    def num_rows(self, split: str) -> int:
        """Return the number of samples in a split."""
        return len(self._prompts[split]) * self._settings.per_prompt

    def record_batches(self, split: str, start: int, stop: int, record_batch_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield rows [start, stop) in record batches."""
        rows = self._draw_rows(split, start, stop)
        while batch := list(itertools.islice(rows, record_batch_rows)):
            yield encode(batch, self._schema)

    def _draw_rows(self, split: str, start: int, stop: int) -> Iterator[SampleRow]:
        per_prompt, prompt_set = self._settings.per_prompt, self._prompts[split]
        prompt_index = np.arange(start, stop) // per_prompt
        seeds = hash_u64(self._config.seed, _SAMPLE_SEED, SPLITS.index(split), np.arange(start, stop))
        completions = stream_completions(
            self._teacher,
            [prompt_set.prompt_ids[p] for p in prompt_index],
            seeds,
            num_slots=max(1, self._batch_tokens // self.tokens_per_row),
            max_new_tokens=self._settings.max_new_tokens,
            temperature=self._settings.temperature,
            top_p=self._settings.top_p,
        )
        with naming_rows(self.kind, split, range(start, stop)):
            for i, completion in enumerate(completions):
                prompt_ids = prompt_set.prompt_ids[prompt_index[i]]
                yield SampleRow(
                    row_id=start + i,
                    prompt_id=prompt_set.prompt_id[prompt_index[i]],
                    sample_index=(start + i) % per_prompt,
                    prompt_ids=prompt_ids,
                    completion_ids=completion.completion_ids,
                    completion_logprobs=completion.completion_logprobs,
                    text=completion_text(self._teacher.tokenizer, prompt_ids, completion.completion_ids),
                    finish_reason=completion.finish_reason,
                    seed=int(seeds[i]),
                )
