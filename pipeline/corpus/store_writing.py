"""Write the tokens of a corpus to the stores of its splits, and count what was read and skipped."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import PrecomputeConfig
from pipeline.corpus.document_writer import DocumentWriter, Piece
from pipeline.corpus.token_store import TokenWriter
from pipeline.corpus.tokenized_rows import RowTokenizer
from pipeline.corpus.validation_split import hold_out_end, split_of
from pipeline.errors import TokenBeyondVocabularyError
from pipeline.sources.corpus import Corpus
from storage.progress import Progress
from storage.records.identity import SPLITS
from storage.rows.columns import token_type
from storage.text.beginnings import without_beginning


@dataclass(frozen=True, kw_only=True)
class TokenizationCounts:
    """How many documents and prompts were read or skipped, and whether validation is the end of the text.

    num_bad_rows: rows that --on-bad-row skip skipped; they are among num_documents. num_inexact_cuts: cuts of long
    documents that may have changed tokens beside them. num_control_tokens: how often texts spell out each control
    token, read as characters. num_chat_control_tokens: how often messages of chats do, read as control tokens.
    """

    num_documents: int
    num_documents_skipped: int
    num_prompts_skipped: int
    validation_is_end_of_text: bool
    num_bad_rows: int = 0
    num_inexact_cuts: int = 0
    num_control_tokens: dict[str, int] = field(default_factory=dict)
    num_chat_control_tokens: dict[str, int] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """Return the counts for the manifest. Those of rare things are left out when there is none of them."""
        rare = ("num_bad_rows", "num_inexact_cuts", "num_control_tokens", "num_chat_control_tokens")
        return {name: value for name, value in asdict(self).items() if value or name not in rare}


@dataclass(frozen=True, kw_only=True)
class TokenizationPlan:
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


def write_stores(plan: TokenizationPlan, directory: Path) -> TokenizationCounts:
    """Store documents and their prompts in order, until --max-tokens are stored or the text ends. Return the counts."""
    config, eos_token_id = plan.config, plan.tokenizer.eos_token_id
    end_of_text = Piece(np.array([] if eos_token_id is None else [eos_token_id], dtype=np.int64))
    writers = {split: _document_writer(plan, directory / split) for split in SPLITS}
    prompt_writers = {
        place: TokenWriter(prompt_dir, plan.dtype) for place, prompt_dir in prompt_dirs(plan, directory).items()
    }
    num_documents = num_skipped = num_prompts_skipped = num_bad_rows = num_tokens = 0
    rows = RowTokenizer(plan.tokenizer, config)
    with Progress(config.max_tokens, "tokenize", "tokens", quiet=config.quiet) as bar:
        for document, pieces in rows.tokenized(plan.corpus.documents()):
            split = split_of(config, num_documents)
            num_documents += 1
            if pieces is None:
                num_bad_rows += 1
                continue
            first = _without_beginning(_first_tokens(pieces), plan.beginning_ids)
            if len(first.ids) < 2:
                num_skipped += 1
                continue
            room = None if config.max_tokens is None else config.max_tokens - num_tokens
            kept = _up_to(room, itertools.chain([first], pieces))
            whole = itertools.chain(kept, [] if rows.ends_itself(document) else [end_of_text])
            checked = (_with_rows(plan, piece, f"document {num_documents}") for piece in whole)
            num_tokens += writers[split].write(checked, bar.update, keep_whole=document.turns is not None)
            for column, prompt in document.prompts.items():
                prompt_ids = np.array(rows.prompt_ids(document, column, prompt) or [], dtype=np.int64)
                piece = _without_beginning(Piece(prompt_ids), plan.beginning_ids)
                if 1 <= len(piece.ids) <= plan.prompt_limits[column]:
                    place = f"column {column!r}, row {num_documents}"
                    prompt_writers[column, split].append(_with_rows(plan, piece, place).ids)
                    prompt_writers[column, split].end_document()
                else:
                    num_prompts_skipped += 1
            if config.max_tokens is not None and num_tokens >= config.max_tokens:
                break
    for writer in writers.values():
        writer.close()
    for prompt_writer in prompt_writers.values():
        prompt_writer.close()
    # Conversations are kept whole: the end of the text serves only where no conversation is held out.
    has_conversations_held_out = config.marks_wanted and writers["validation"].num_tokens > 0
    is_end_of_text = not has_conversations_held_out and hold_out_end(
        directory, config, plan.dtype, marks_cut=len(plan.beginning_ids) > 0
    )
    return TokenizationCounts(
        num_documents=num_documents,
        num_documents_skipped=num_skipped,
        num_prompts_skipped=num_prompts_skipped,
        validation_is_end_of_text=is_end_of_text,
        num_bad_rows=num_bad_rows,
        num_inexact_cuts=rows.texts.num_inexact_cuts,
        num_control_tokens=dict(rows.texts.num_control_tokens),
        num_chat_control_tokens=dict(rows.texts.num_chat_control_tokens),
    )


def _first_tokens(pieces: Iterator[Piece]) -> Piece:
    """Return the first pieces of a document joined, as many as hold two tokens."""
    first = next(pieces, Piece(np.empty(0, np.int64)))
    while len(first.ids) < 2 and (piece := next(pieces, None)) is not None:
        first = Piece(np.concatenate([first.ids, piece.ids]))  # only texts come in several pieces
    return first


def _without_beginning(piece: Piece, beginning_ids: tuple[int, ...]) -> Piece:
    """Return a document's first piece, or a prompt, without the beginning that a chat template may have written."""
    ids = without_beginning(piece.ids, beginning_ids)
    return Piece(ids, None if piece.is_wanted is None else piece.is_wanted[len(piece.ids) - len(ids) :])


def _with_rows(plan: TokenizationPlan, piece: Piece, place: str) -> Piece:
    """Return the piece; raise TokenBeyondVocabularyError for an id that the teacher has no row for. place: of it."""
    beyond = piece.ids[piece.ids >= plan.vocab_size]
    if len(beyond):
        token = str(plan.tokenizer.convert_ids_to_tokens(int(beyond[0])))
        raise TokenBeyondVocabularyError(plan.config.teacher, token, int(beyond[0]), plan.vocab_size, place)
    return piece


def _document_writer(plan: TokenizationPlan, directory: Path) -> DocumentWriter:
    eos_token_id = plan.tokenizer.eos_token_id
    return DocumentWriter(
        directory,
        plan.dtype,
        marks_wanted=plan.config.marks_wanted,
        block_tokens=plan.config.block_size + 1,
        num_beginning=len(plan.beginning_ids),
        filler_id=0 if eos_token_id is None else eos_token_id,
    )


def _up_to(room: int | None, pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Yield the pieces of a document, cut after `room` tokens in all; None cuts nothing."""
    for ids, is_wanted in pieces:
        yield Piece(ids[:room], None if is_wanted is None else is_wanted[:room])
        if room is not None:
            room -= len(ids)
            if room <= 0:
                return


def prompt_dirs(plan: TokenizationPlan, directory: Path) -> dict[tuple[str, str], Path]:
    """Return the directory of each store of prompts, by column and split."""
    return {
        (column, split): directory / f"prompts-{index}-{split}"
        for index, column in enumerate(sorted(plan.prompt_limits))
        for split in SPLITS
    }
