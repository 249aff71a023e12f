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
from pipeline.corpus.blocks import Blocks, without_beginning
from pipeline.corpus.token_store import TokenStore, TokenWriter
from pipeline.corpus.tokenizer_calls import CorpusTokenizer
from pipeline.corpus.validation_split import hold_out_end, split_of
from pipeline.errors import ColumnError, NoUsableTextError, TokenBeyondVocabularyError
from pipeline.sources.corpus import Corpus, Prompt
from pipeline.work.claims import claimed
from storage.disk.files import refusals, write_file
from storage.progress import Progress
from storage.records.identity import SPLITS
from storage.rows.columns import token_type

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
    """Token stores of documents by split, and of prompts by column and split, all without beginnings; blocks by split.

    beginning_ids: what every segment of a block and every prompt begins with.
    """

    documents: dict[str, TokenStore]
    blocks: dict[str, Blocks]
    prompts: dict[str, dict[str, TokenStore]]
    beginning_ids: tuple[int, ...]
    counts: TokenizationCounts


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What to tokenize, and how to store it.

    vocab_size: ids that the teacher has rows for. prompt_limits: maximum tokens of a prompt by column.
    """

    corpus: Corpus
    tokenizer: Any
    config: PrecomputeConfig
    vocab_size: int
    beginning_ids: tuple[int, ...]
    prompt_limits: dict[str, int]

    @property
    def dtype(self) -> Any:
        """The dtype of the stored ids."""
        return token_type(self.vocab_size).to_pandas_dtype()


def packing_recipe(beginning_ids: tuple[int, ...]) -> str:
    """Return how documents become blocks, in words for the manifest."""
    return f"{PACKING_RECIPE}; every segment begins with beginning_ids" if beginning_ids else PACKING_RECIPE


def tokenize_corpus(
    corpus: Corpus,
    tokenizer: Any,
    config: PrecomputeConfig,
    *,
    vocab_size: int,
    beginning_ids: tuple[int, ...] = (),
    context_length: int,
    work_dir: Path,
) -> TokenizedCorpus:
    """Tokenize into `work_dir`, or reuse the tokens that an earlier run stored there.

    vocab_size: ids that the teacher has rows for. beginning_ids: what segments and prompts begin with. context_length:
    tokens that the teacher can read. Prompts from columns that leave no room in it for the completion are skipped and
    counted. Raises NoUsableTextError when the train split is shorter than one block, TokenBeyondVocabularyError for a
    text with a token that the teacher has no row for.
    """
    plan = _Plan(
        corpus=corpus,
        tokenizer=tokenizer,
        config=config,
        vocab_size=vocab_size,
        beginning_ids=beginning_ids,
        prompt_limits=_prompt_limits(config, context_length - len(beginning_ids)),
    )
    if not work_dir.exists():
        with claimed(work_dir.parent, work_dir.name):
            if not work_dir.exists():  # no process finished it while this one waited
                _tokenize(plan, work_dir)
    tokenized = _open_stores(plan, work_dir)
    if len(tokenized.blocks["train"]) == 0:
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
        for document, pieces in tokenizer.documents(plan.corpus.documents(), np.int64):
            split = split_of(config, num_documents)
            num_documents += 1
            first = without_beginning(_beginning(pieces, np.int64), plan.beginning_ids)
            if len(first) < 2:
                num_skipped += 1
                continue
            room = None if config.max_tokens is None else config.max_tokens - num_tokens
            kept = _up_to(room, itertools.chain([first], pieces))
            for ids in itertools.chain(kept, [end_of_text]):
                writers[split].append(_with_rows(plan, ids, f"document {num_documents}"))
                num_tokens += len(ids)
                bar.update(len(ids))
            writers[split].end_document()
            for column, prompt in document.prompts.items():
                prompt_ids = np.array(_prompt_ids(plan, tokenizer, column, prompt), dtype=np.int64)
                prompt_ids = without_beginning(prompt_ids, plan.beginning_ids)
                if 1 <= len(prompt_ids) <= plan.prompt_limits[column]:
                    place = f"column {column!r}, row {num_documents}"
                    prompt_writers[column, split].append(_with_rows(plan, prompt_ids, place))
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
        validation_is_end_of_text=hold_out_end(directory, config, plan.dtype, marks_cut=len(plan.beginning_ids) > 0),
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


def _with_rows(plan: _Plan, ids: NDArray[Any], place: str) -> NDArray[Any]:
    """Return the ids; raise TokenBeyondVocabularyError for one that the teacher has no row for. place: of the text."""
    beyond = ids[ids >= plan.vocab_size]
    if len(beyond):
        token = str(plan.tokenizer.convert_ids_to_tokens(int(beyond[0])))
        raise TokenBeyondVocabularyError(plan.config.teacher, token, int(beyond[0]), plan.vocab_size, place)
    return ids


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
    documents = {split: TokenStore(work_dir / split, plan.dtype) for split in SPLITS}
    block_size, beginning_ids = plan.config.block_size, plan.beginning_ids
    return TokenizedCorpus(
        documents=documents,
        blocks={split: Blocks(store, block_size, beginning_ids) for split, store in documents.items()},
        prompts=prompts,
        beginning_ids=beginning_ids,
        counts=TokenizationCounts(**json.loads((work_dir / _COUNTS_NAME).read_bytes())),
    )


def _prompt_dirs(plan: _Plan, directory: Path) -> dict[tuple[str, str], Path]:
    """Return the directory of each store of prompts, by column and split."""
    return {
        (column, split): directory / f"prompts-{index}-{split}"
        for index, column in enumerate(sorted(plan.prompt_limits))
        for split in SPLITS
    }
