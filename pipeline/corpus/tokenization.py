"""Tokenize a corpus once, before the teacher runs, into token stores on disk that every process maps.

Costs: before the first row is made, a pass over the whole text and 2 or 4 bytes of disk per token. A pass that is
killed starts again from the beginning. Gains: the number of rows is known at the start, so the plan is a pure function
of configuration and data. Any process can read any row without reading the rows before it. Memory does not grow with
the text. A rerun reuses the tokens of an earlier run.

Every document ends with the tokenizer's end-of-text token if there is one. Prompts from columns have separate stores.
"""

from __future__ import annotations

import errno
import itertools
import json
import secrets
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import PrecomputeConfig
from pipeline.corpus.token_store import TokenStore, TokenWriter
from pipeline.corpus.tokenizer_calls import CorpusTokenizer
from pipeline.corpus.validation_split import hold_out_end, split_of
from pipeline.errors import ColumnError, NoUsableTextError
from pipeline.sources.corpus import Corpus, Prompt
from pipeline.work.claims import claimed
from storage.disk.files import refusals, write_file
from storage.progress import Progress
from storage.records.identity import SPLITS

PACKING_RECIPE = (
    "documents in order, end-of-text after each, cut into blocks of block_size + 1 tokens; "
    "documents in a block see only themselves and positions start again at 0"
)
_COUNTS_NAME = "counts.json"


@dataclass(frozen=True, kw_only=True)
class TokenizationCounts:
    """How many documents and prompts were read or skipped, and whether validation is the end of the text.

    num_inexact_cuts: cuts of long documents that may have changed tokens beside them. num_control_tokens: how often
    texts spell out each control token, read as characters. num_chat_control_tokens: how often messages of chats do,
    read as control tokens.
    """

    num_documents: int
    num_documents_skipped: int
    num_prompts_skipped: int
    validation_is_end_of_text: bool
    num_inexact_cuts: int = 0
    num_control_tokens: dict[str, int] = field(default_factory=dict)
    num_chat_control_tokens: dict[str, int] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """Return the counts for the manifest. Those of rare things are left out when there is none of them."""
        rare = ("num_inexact_cuts", "num_control_tokens", "num_chat_control_tokens")
        return {name: value for name, value in asdict(self).items() if value or name not in rare}


@dataclass(frozen=True, kw_only=True)
class TokenizedCorpus:
    """Token stores of documents by split, and of prompts by column and split."""

    documents: dict[str, TokenStore]
    prompts: dict[str, dict[str, TokenStore]]
    counts: TokenizationCounts

    def num_blocks(self, split: str, block_size: int) -> int:
        """Return the number of whole blocks of block_size + 1 tokens."""
        return self.documents[split].num_tokens // (block_size + 1)


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What to tokenize, and how to store it.

    dtype: dtype of the stored ids. prompt_limits: maximum tokens of a prompt by column.
    """

    corpus: Corpus
    tokenizer: Any
    config: PrecomputeConfig
    dtype: Any
    prompt_limits: dict[str, int]


def tokenize_corpus(
    corpus: Corpus, tokenizer: Any, config: PrecomputeConfig, *, dtype: Any, context_length: int, work_dir: Path
) -> TokenizedCorpus:
    """Tokenize into `work_dir`, or reuse the tokens that an earlier run stored there.

    dtype: dtype of the stored ids. context_length: tokens that the teacher can read. Prompts from columns that leave no
    room in it for the completion are skipped and counted. Raises NoUsableTextError when the train split is shorter than
    one block.
    """
    limits = _prompt_limits(config, context_length)
    plan = _Plan(corpus=corpus, tokenizer=tokenizer, config=config, dtype=dtype, prompt_limits=limits)
    if not work_dir.exists():
        with claimed(work_dir.parent, work_dir.name):
            if not work_dir.exists():  # no process finished it while this one waited
                _tokenize(plan, work_dir)
    tokenized = _open_stores(plan, work_dir)
    if tokenized.num_blocks("train", config.block_size) == 0:
        raise NoUsableTextError(
            config.data,
            tokenized.counts.num_documents,
            tokenized.counts.num_documents_skipped,
            {split: store.num_tokens for split, store in tokenized.documents.items()},
            config.block_size + 1,
        )
    return tokenized


def _prompt_limits(config: PrecomputeConfig, context_length: int) -> dict[str, int]:
    """Return, by column, the maximum tokens of a prompt that leave room for the completion."""
    limits: dict[str, int] = {}
    for settings in config.prompt_settings.values():
        if settings.prompt_column:
            room = context_length - settings.max_new_tokens
            limits[settings.prompt_column] = min(room, limits.get(settings.prompt_column, room))
    return limits


def _tokenize(plan: _Plan, work_dir: Path) -> None:
    """Write the stores beside `work_dir`, then rename them. Without working locks, the first process to finish wins."""
    staging = work_dir.with_name(f"{work_dir.name}-{secrets.token_hex(8)}")
    counts = _write_stores(plan, staging)
    write_file(staging / _COUNTS_NAME, json.dumps(asdict(counts)).encode())
    with refusals(work_dir):
        try:
            staging.rename(work_dir)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            shutil.rmtree(staging)


def _write_stores(plan: _Plan, directory: Path) -> TokenizationCounts:
    """Store documents and their prompts in order, until --max-tokens are stored or the text ends. Return the counts."""
    config, eos_token_id = plan.config, plan.tokenizer.eos_token_id
    end_of_text = np.array([] if eos_token_id is None else [eos_token_id], dtype=plan.dtype)
    writers = {split: TokenWriter(directory / split, plan.dtype) for split in SPLITS}
    prompt_writers = {
        place: TokenWriter(prompt_dir, plan.dtype) for place, prompt_dir in _prompt_dirs(plan, directory).items()
    }
    tokenizer = CorpusTokenizer(plan.tokenizer)
    num_documents = num_skipped = num_prompts_skipped = num_tokens = 0
    with Progress(config.max_tokens, "tokenize", "tokens", quiet=config.quiet) as bar:
        for document, pieces in tokenizer.documents(plan.corpus.documents(), plan.dtype):
            split = split_of(config, num_documents)
            num_documents += 1
            first = _beginning(pieces, plan.dtype)
            if len(first) < 2:
                num_skipped += 1
                continue
            room = None if config.max_tokens is None else config.max_tokens - num_tokens
            kept = _up_to(room, itertools.chain([first], pieces))
            for ids in itertools.chain(kept, [end_of_text]):
                writers[split].append(ids)
                num_tokens += len(ids)
                bar.update(len(ids))
            writers[split].end_document()
            for column, prompt in document.prompts.items():
                prompt_ids = _prompt_ids(plan, tokenizer, column, prompt)
                if 1 <= len(prompt_ids) <= plan.prompt_limits[column]:
                    prompt_writers[column, split].append(np.array(prompt_ids, dtype=plan.dtype))
                    prompt_writers[column, split].end_document()
                else:
                    num_prompts_skipped += 1
            if config.max_tokens is not None and num_tokens >= config.max_tokens:
                break
    for writer in (*writers.values(), *prompt_writers.values()):
        writer.close()
    return TokenizationCounts(
        num_documents=num_documents,
        num_documents_skipped=num_skipped,
        num_prompts_skipped=num_prompts_skipped,
        validation_is_end_of_text=hold_out_end(directory, config, plan.dtype),
        num_inexact_cuts=tokenizer.num_inexact_cuts,
        num_control_tokens=dict(tokenizer.num_control_tokens),
        num_chat_control_tokens=dict(tokenizer.num_chat_control_tokens),
    )


def _beginning(pieces: Iterator[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    """Return the first pieces of a document joined, as many as hold two tokens."""
    beginning = np.array([], dtype=dtype)
    while len(beginning) < 2 and (ids := next(pieces, None)) is not None:
        beginning = np.concatenate([beginning, ids])
    return beginning


def _up_to(room: int | None, pieces: Iterable[NDArray[Any]]) -> Iterator[NDArray[Any]]:
    """Yield the pieces of a document, cut after `room` tokens in all; None cuts nothing."""
    for ids in pieces:
        yield ids[:room]
        if room is not None:
            room -= len(ids)
            if room <= 0:
                return


def _prompt_ids(plan: _Plan, tokenizer: CorpusTokenizer, column: str, prompt: Prompt) -> list[int]:
    """Return the token ids of a text, or of a chat rendered by the chat template; ColumnError if there is none."""
    if isinstance(prompt, str):
        return tokenizer.prompt_ids(prompt)
    if plan.tokenizer.chat_template is None:
        problem = "holds chats, and the tokenizer has no chat template"
        raise ColumnError(plan.config.data, column, problem, "--samples.prompt-column")
    tokenizer.count_in_chat(prompt)
    chat: list[int] = plan.tokenizer.apply_chat_template(
        prompt, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    return chat


def _open_stores(plan: _Plan, work_dir: Path) -> TokenizedCorpus:
    prompts: dict[str, dict[str, TokenStore]] = {column: {} for column in plan.prompt_limits}
    for (column, split), directory in _prompt_dirs(plan, work_dir).items():
        prompts[column][split] = TokenStore(directory, plan.dtype)
    return TokenizedCorpus(
        documents={split: TokenStore(work_dir / split, plan.dtype) for split in SPLITS},
        prompts=prompts,
        counts=TokenizationCounts(**json.loads((work_dir / _COUNTS_NAME).read_bytes())),
    )


def _prompt_dirs(plan: _Plan, directory: Path) -> dict[tuple[str, str], Path]:
    """Return the directory of each store of prompts, by column and split."""
    return {
        (column, split): directory / f"prompts-{index}-{split}"
        for index, column in enumerate(sorted(plan.prompt_limits))
        for split in SPLITS
    }
