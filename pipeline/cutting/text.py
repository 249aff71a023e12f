"""The text that shows what matters: blocks of a finished cache, or of a data source.

Shape legend: N blocks of a pass, T positions.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from numpy.typing import NDArray

from pipeline.cutting.config import CutConfig
from pipeline.cutting.importance import Batch
from pipeline.errors import ForeignTokenizerError
from pipeline.job import lay_out, open_source
from pipeline.teacher.model import Teacher
from storage.errors import RecordError, UnusableModelError
from storage.progress import Progress
from storage.reading.cache import Cache, open_cache
from storage.rows.segments import position_ids
from storage.rows.soft_targets import decode
from storage.text.tokenizer_files import load_tokenizer_files

_TOKENS_PER_PASS = 4096
# Token ids and positions of blocks, both [N, T].
_Blocks = tuple[NDArray[Any], NDArray[np.int64]]


@dataclass(frozen=True, kw_only=True)
class Text:
    """Blocks of a text for a teacher, which can keep their documents apart. facts: what it is, for the record."""

    teacher: Teacher
    facts: dict[str, Any]
    num_tokens: int
    blocks: Iterator[_Blocks]

    def batches(self, *, quiet: bool) -> Iterator[Batch]:
        """Yield the blocks on the teacher's device, once, and show the progress."""
        with Progress(self.num_tokens, "importance", "tokens", quiet=quiet) as progress:
            for ids_NT, positions_NT in self.blocks:
                yield self.teacher.to_device(ids_NT), self.teacher.to_device(positions_NT)
                progress.update(ids_NT.size)


@contextlib.contextmanager
def open_text(config: CutConfig, teacher: Teacher) -> Iterator[Text]:
    """Yield the text of --cache or --data.

    Raises ContextTooShortError, LeakingTeacherError, DataError, CacheError, ConfigError, or ForeignTokenizerError when
    the ids of the cache are other tokens to the teacher.
    """
    if config.cache is not None:
        yield _of_cache(config, teacher, open_cache(config.cache))
        return
    loaded, size = open_source(teacher, config.run), config.block_size
    teacher.choose_isolation(size, config.teacher)
    with tempfile.TemporaryDirectory() as directory:
        found = lay_out(loaded, Path(directory)).tokenized.blocks["train"]

        def blocks() -> Iterator[_Blocks]:
            for start, stop in _ranges(len(found), size):
                positions = [position_ids(found.segment_lengths(block)) for block in range(start, stop)]
                yield found.input_ids(start, stop)[:, :size], np.stack(positions)[:, :size]

        facts = {"data": loaded.corpus.source, "fingerprint": loaded.corpus.fingerprint}
        yield Text(teacher=teacher, facts=facts, num_tokens=len(found) * size, blocks=blocks())


def _of_cache(config: CutConfig, teacher: Teacher, cache: Cache) -> Text:
    size = cache.identity.block_size
    num_rows = sum(shard.num_rows for shard in cache.shards("soft_targets", "train"))
    num_blocks = min(num_rows, max(1, config.max_tokens // size))
    _require_same_tokens(teacher, cache)
    teacher.require_context("a block of --cache", size)
    teacher.choose_isolation(size, config.teacher)

    def blocks() -> Iterator[_Blocks]:
        left = num_blocks
        for batch in cache.record_batches("soft_targets", "train"):
            rows = decode(batch)
            for start, stop in _ranges(min(left, len(rows)), size):
                yield rows.input_ids[start:stop, :size], rows.positions[start:stop, :size]
            left -= len(rows)
            if left <= 0:
                return

    facts = {"cache": Path(cache.where).name, "rows_sha256": cache.rows_sha256}
    return Text(teacher=teacher, facts=facts, num_tokens=num_blocks * size, blocks=blocks())


def _ranges(num_blocks: int, block_size: int) -> Iterator[tuple[int, int]]:
    per_pass = max(1, _TOKENS_PER_PASS // block_size)
    for start in range(0, num_blocks, per_pass):
        yield start, min(start + per_pass, num_blocks)


def _require_same_tokens(teacher: Teacher, cache: Cache) -> None:
    """Raise ForeignTokenizerError unless each id of the cache's tokenizer is the same token to the teacher's."""
    directory = cache.checked_tokenizer_dir()
    try:
        theirs = load_tokenizer_files(transformers.AutoTokenizer, str(directory), local_files_only=True).get_vocab()
    except UnusableModelError as error:
        raise RecordError(str(directory), error.reason) from error
    ours = {token_id: token for token, token_id in teacher.tokenizer.get_vocab().items()}
    for token, token_id in sorted(theirs.items(), key=lambda entry: entry[1]):
        if ours.get(token_id) != token:
            raise ForeignTokenizerError(cache.where, token_id, token, ours.get(token_id))
    if cache.identity.vocab_size > teacher.vocab_size:
        raise ForeignTokenizerError(cache.where, cache.identity.vocab_size - 1, "a row of its teacher", None)
