"""Tokenizing a corpus once, into a train and a validation store, with the prompts that columns give.

Documents get the tokenizer's end-of-text token at their end when it has one. A document goes to the
validation split by a hash of its index; when that leaves validation without a block (few documents),
the end of the text becomes the validation split instead.
"""

from __future__ import annotations

import errno
import itertools
import json
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.config import PrecomputeConfig
from pipeline.corpus.sources import Corpus, Document, Prompt
from pipeline.corpus.token_store import TokenStore, TokenWriter
from pipeline.errors import ColumnError, NoUsableTextError
from pipeline.work.claims import claimed
from storage.disk.files import refusals, write_file
from storage.draws import hash_uniform
from storage.progress import Progress
from storage.records.identity import SPLITS

PACKING_RECIPE = (
    "documents in order, end-of-text after each, cut into blocks of block_size + 1 tokens; "
    "documents in a block see only themselves and positions start again at 0"
)
_CHARS_PER_CALL = 4 << 20
_VALIDATION_DRAW = 4
_COUNTS_NAME = "counts.json"


@dataclass(frozen=True, kw_only=True)
class TokenizationCounts:
    """What happened to the documents."""

    num_documents: int
    num_documents_skipped: int
    num_prompts_skipped: int
    validation_is_end_of_text: bool


@dataclass(frozen=True, kw_only=True)
class TokenizedCorpus:
    """Stores by split; prompts by column and split."""

    documents: dict[str, TokenStore]
    prompts: dict[str, dict[str, TokenStore]]
    counts: TokenizationCounts

    def num_blocks(self, split: str, block_size: int) -> int:
        """Whole blocks of block_size + 1 tokens."""
        return self.documents[split].num_tokens // (block_size + 1)


def tokenize_corpus(
    corpus: Corpus, tokenizer: Any, config: PrecomputeConfig, *, dtype: Any, context_length: int, work_dir: Path
) -> TokenizedCorpus:
    """Tokenize into `work_dir`, or reuse what an earlier run finished there.

    dtype: of the stored ids. context_length: prompts from columns that leave no room in it for the
    completion are skipped and counted. Raises NoUsableTextError when the train split holds no block.
    """
    prompt_limits = _prompt_limits(config, context_length)
    if not work_dir.exists():
        with claimed(work_dir.parent, work_dir.name):
            if not work_dir.exists():  # nobody finished it while this process waited
                _tokenize(corpus, tokenizer, config, dtype, work_dir, prompt_limits)
    counts = TokenizationCounts(**json.loads((work_dir / _COUNTS_NAME).read_bytes()))
    tokenized = TokenizedCorpus(
        documents={split: TokenStore(work_dir / split, dtype) for split in SPLITS},
        prompts={
            column: {split: TokenStore(_prompt_dir(work_dir, i, split), dtype) for split in SPLITS}
            for i, column in enumerate(sorted(prompt_limits))
        },
        counts=counts,
    )
    if tokenized.num_blocks("train", config.block_size) == 0:
        raise NoUsableTextError(
            config.data,
            counts.num_documents,
            counts.num_documents_skipped,
            {split: store.num_tokens for split, store in tokenized.documents.items()},
            config.block_size + 1,
        )
    return tokenized


def _tokenize(
    corpus: Corpus,
    tokenizer: Any,
    config: PrecomputeConfig,
    dtype: Any,
    work_dir: Path,
    prompt_limits: dict[str, int],
) -> None:
    """Where claims exclude nobody, each process builds its own directory and the first to finish wins."""
    staging = work_dir.with_name(f"{work_dir.name}-{secrets.token_hex(8)}")
    counts = _Tokenization(corpus, tokenizer, config, dtype, staging, prompt_limits).run()
    write_file(staging / _COUNTS_NAME, json.dumps(asdict(counts)).encode())
    with refusals(work_dir):
        try:
            staging.rename(work_dir)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            shutil.rmtree(staging)


def _prompt_dir(work_dir: Path, column_index: int, split: str) -> Path:
    return work_dir / f"prompts-{column_index}-{split}"


def _prompt_limits(config: PrecomputeConfig, context_length: int) -> dict[str, int]:
    """Longest prompt of each column that leaves room for the completion."""
    limits: dict[str, int] = {}
    for settings in config.prompt_settings.values():
        if settings.prompt_column:
            room = context_length - settings.max_new_tokens
            limits[settings.prompt_column] = min(room, limits.get(settings.prompt_column, room))
    return limits


class _Piece(NamedTuple):
    document_index: int
    document: Document
    text: str


class _Tokenization:
    """One pass over the corpus."""

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Any,
        config: PrecomputeConfig,
        dtype: Any,
        work_dir: Path,
        prompt_limits: dict[str, int],
    ) -> None:
        self._corpus, self._tokenizer, self._config = corpus, tokenizer, config
        self._dtype, self._work_dir, self._prompt_limits = dtype, work_dir, prompt_limits
        self._writers = {split: TokenWriter(work_dir / split, dtype) for split in SPLITS}
        self._prompt_writers = {
            (column, split): TokenWriter(_prompt_dir(work_dir, i, split), dtype)
            for i, column in enumerate(sorted(prompt_limits))
            for split in SPLITS
        }
        self._end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        self._num_documents = self._num_skipped = self._num_prompts_skipped = 0

    def run(self) -> TokenizationCounts:
        limit = self._config.max_tokens
        with Progress(limit, "tokenize", "tokens", quiet=self._config.quiet) as bar:
            for document, ids in self._tokenized_documents():
                self._add(document, ids, bar)
                if limit is not None and self._num_tokens >= limit:
                    break
        stores = {split: writer.close() for split, writer in self._writers.items()}
        for writer in self._prompt_writers.values():
            writer.close()
        is_end = self._config.validation_fraction > 0 and (stores["validation"].num_tokens <= self._config.block_size)
        if is_end:
            is_end = self._split_end(stores)
        return TokenizationCounts(
            num_documents=self._num_documents,
            num_documents_skipped=self._num_skipped,
            num_prompts_skipped=self._num_prompts_skipped,
            validation_is_end_of_text=is_end,
        )

    @property
    def _num_tokens(self) -> int:
        return sum(writer.num_tokens for writer in self._writers.values())

    def _tokenized_documents(self) -> Iterator[tuple[Document, Iterator[NDArray[Any]]]]:
        """Each document with its tokens piece by piece; pieces of many documents share a tokenizer call."""
        pieces = (
            _Piece(index, document, text)
            for index, document in enumerate(self._corpus.documents())
            for text in document.pieces
        )
        tokenized = ((piece, ids) for batch in _batches(pieces) for piece, ids in self._tokenize(batch))
        for _, group in itertools.groupby(tokenized, key=lambda item: item[0].document_index):
            piece, first = next(group)
            yield piece.document, itertools.chain([first], (ids for _, ids in group))  # noqa: B031

    def _tokenize(self, batch: list[_Piece]) -> Iterator[tuple[_Piece, NDArray[Any]]]:
        texts = [piece.text for piece in batch]
        ids = self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return zip(batch, (np.array(piece_ids, dtype=self._dtype) for piece_ids in ids), strict=True)

    def _add(self, document: Document, pieces: Iterator[NDArray[Any]], bar: Progress) -> None:
        index = self._num_documents
        self._num_documents += 1
        split = self._split_of(index)
        first = list(itertools.islice(_nonempty(pieces), 1))
        if sum(map(len, first)) < 2:
            self._num_skipped += 1
            return
        writer = self._writers[split]
        for ids in itertools.chain(first, pieces):
            room = None if self._config.max_tokens is None else max(self._config.max_tokens - self._num_tokens, 0)
            writer.append(ids[:room])
            bar.update(len(ids[:room]))
            if room is not None and len(ids) >= room:
                break
        writer.append(np.array(self._end, dtype=self._dtype))
        writer.end_document()
        bar.update(len(self._end))
        for column, prompt in document.prompts.items():
            self._add_prompt(column, split, prompt)

    def _split_of(self, document_index: int) -> str:
        if document_index == 0:
            return "train"  # so that a single document is never wholly held out
        draw = hash_uniform(self._config.seed, _VALIDATION_DRAW, document_index)
        return "validation" if draw < self._config.validation_fraction else "train"

    def _add_prompt(self, column: str, split: str, prompt: Prompt) -> None:
        ids = self._prompt_ids(column, prompt)
        if not 1 <= len(ids) <= self._prompt_limits[column]:
            self._num_prompts_skipped += 1
            return
        writer = self._prompt_writers[column, split]
        writer.append(np.array(ids, dtype=self._dtype))
        writer.end_document()

    def _prompt_ids(self, column: str, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            ids: list[int] = self._tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
            return ids
        if self._tokenizer.chat_template is None:
            raise ColumnError(
                self._config.data,
                column,
                "holds chats, and the tokenizer has no chat template",
                "--samples.prompt-column",
            )
        chat: list[int] = self._tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        return chat

    def _split_end(self, stores: dict[str, TokenStore]) -> bool:
        """Move the end of the train split to the validation split, but leave train a block; whether both have one.

        The end is as much as --validation-fraction says, at least a block.
        """
        train, validation = stores["train"], stores["validation"]
        block_tokens = self._config.block_size + 1
        num_held_out = max(int(train.num_tokens * self._config.validation_fraction), block_tokens)
        num_held_out = min(num_held_out, train.num_tokens - block_tokens)
        if num_held_out < block_tokens:
            return False
        boundary = train.num_tokens - num_held_out
        staged = {split: TokenWriter(self._work_dir / "staged" / split, self._dtype) for split in SPLITS}
        _copy_range(train, 0, boundary, staged["train"])
        _copy_range(validation, 0, validation.num_tokens, staged["validation"])
        _copy_range(train, boundary, train.num_tokens, staged["validation"])
        for split, writer in staged.items():
            writer.close()
            with refusals(self._work_dir):
                shutil.rmtree(self._work_dir / split)
                (self._work_dir / "staged" / split).rename(self._work_dir / split)
        return True


def _copy_range(source: TokenStore, start: int, stop: int, writer: TokenWriter) -> None:
    if start == stop:
        return
    for length in source.segment_lengths(start, stop):
        for offset in range(start, start + length, 1 << 20):
            writer.append(np.asarray(source.tokens[offset : min(offset + (1 << 20), start + length)]))
        writer.end_document()
        start += length


def _nonempty(pieces: Iterator[NDArray[Any]]) -> Iterator[NDArray[Any]]:
    return (piece for piece in pieces if len(piece))


def _batches(pieces: Iterator[_Piece]) -> Iterator[list[_Piece]]:
    """Lists of pieces with about _CHARS_PER_CALL characters each."""
    batch: list[_Piece] = []
    num_chars = 0
    for piece in pieces:
        batch.append(piece)
        num_chars += len(piece.text)
        if num_chars >= _CHARS_PER_CALL:
            yield batch
            batch, num_chars = [], 0
    if batch:
        yield batch
