"""Code that the producers of continuations share: take prompts, and compute the context that they need."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config import PrecomputeConfig
from pipeline.corpus.blocks import PromptSet, prompts_from_blocks, prompts_from_column
from pipeline.corpus.tokenization import TokenizedCorpus
from pipeline.decoding.cache_check import choose_cache
from pipeline.errors import NoPromptsError, TeacherOutputError, UnusableLogitsError
from pipeline.producers.producer import Producer
from pipeline.teacher.batch_size import DEFAULT_BATCH_TOKENS
from pipeline.teacher.model import Teacher
from storage.records.identity import SPLITS


class PromptedProducer(Producer):
    """Make rows that continue prompts."""

    def __init__(
        self, teacher: Teacher, config: PrecomputeConfig, prompts: dict[str, PromptSet], row_schema: pa.Schema
    ) -> None:
        self._teacher, self._config, self._prompts, self._schema = teacher, config, prompts, row_schema
        self._batch_tokens = config.batch_tokens or DEFAULT_BATCH_TOKENS
        self.longest_prompt_tokens = max(map(len, (ids for s in prompts.values() for ids in s.prompt_ids)), default=0)
        choose_cache(teacher, self.longest_prompt_tokens + config.prompt_settings[self.kind].max_new_tokens)

    @classmethod
    def context_needed(cls, config: PrecomputeConfig, num_beginning: int) -> tuple[str, int]:
        """Return the flags that decide the tokens of prompt and continuation, and these tokens.

        Count 1 token for a prompt from a column: prompts that are too long are skipped.
        """
        settings = config.prompt_settings[cls.kind]
        prompt_tokens = 1 if settings.prompt_column else settings.prompt_tokens
        flags = f"--{cls.kind}.prompt-tokens + --{cls.kind}.max-new-tokens"
        return flags, num_beginning + prompt_tokens + settings.max_new_tokens

    def num_rows_of(self, growth: float) -> float:
        """Return the number of rows that a text `growth` times as long would have. It has at most --num-prompts."""
        num_prompts = sum(map(len, self._prompts.values()))
        most = self._config.prompt_settings[self.kind].num_prompts
        return super().num_rows_of(min(growth, most / num_prompts))


@contextlib.contextmanager
def naming_rows(kind: str, split: str, rows: Sequence[int] | NDArray[np.int64]) -> Iterator[None]:
    """Raise TeacherOutputError in place of an UnusableLogitsError. rows: the row of each text that is being written."""
    try:
        yield
    except UnusableLogitsError as error:
        raise TeacherOutputError(kind, split, int(rows[error.index]), error.largest) from error


def take_prompts(kind: str, tokenized: TokenizedCorpus, config: PrecomputeConfig) -> dict[str, PromptSet]:
    """Return the prompts of a kind by split. Raises NoPromptsError when the train split has none."""
    settings = config.prompt_settings[kind]
    num_validation = min(round(settings.num_prompts * config.validation_fraction), settings.num_prompts - 1)
    wanted = {"train": settings.num_prompts - num_validation, "validation": num_validation}
    if settings.prompt_column is None:
        prompts = {
            split: prompts_from_blocks(blocks, wanted[split], settings.prompt_tokens)
            for split, blocks in tokenized.blocks.items()
        }
    else:
        stores = tokenized.prompts[settings.prompt_column]
        prompts = {
            split: prompts_from_column(stores[split], wanted[split], tokenized.beginning_ids) for split in SPLITS
        }
    if not len(prompts["train"]):
        skipped = tokenized.counts.num_prompts_skipped
        raise NoPromptsError(config.data, kind, settings.prompt_tokens, settings.prompt_column, skipped)
    return prompts
