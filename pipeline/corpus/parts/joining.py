"""Join the tokenized parts of a corpus into the token stores of its splits, document by document in order."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.corpus.document_writer import DocumentWriter, Piece
from pipeline.corpus.parts.seams import Seam, seam
from pipeline.corpus.parts.writing import NumberedStore, TokenizationPlan, TokenizedPart, prompt_names
from pipeline.corpus.token_store import TokenWriter
from pipeline.corpus.validation_split import hold_out_end, is_held_out
from storage.records.identity import SPLITS
from storage.text.characters import Encoded

_DOCUMENTS_AT_ONCE = 1 << 16
_NO_SEAM = Seam(0, 0, is_exact=True)


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


class _Range(NamedTuple):
    """What to copy of a store: documents that are numbered from `base` on, without tokens at either end.

    is_open: whether the last document goes on in the next part.
    """

    base: int
    num_skipped: int = 0
    num_dropped: int = 0
    is_open: bool = False


def join_parts(plan: TokenizationPlan, parts: Iterable[TokenizedPart], directory: Path) -> TokenizationCounts:
    """Write the stores of splits and prompts below `directory`. Return the counts. Raises WriteRefusedError."""
    texts = _TextWriters(plan, directory)
    prompts = {place: TokenWriter(prompt_dir, plan.dtype) for place, prompt_dir in prompt_dirs(plan, directory).items()}
    sums: Counter[str] = Counter()
    control_tokens: Counter[str] = Counter()
    chat_control_tokens: Counter[str] = Counter()
    before = _NO_SEAM
    for part, following in _with_following(parts):
        base = sums["num_documents"]
        behind = _NO_SEAM if part.tail is None else seam(part.tail, _head_of(following))
        is_open = part.tail is not None
        texts.copy(part.documents, _Range(base, before.num_skipped, behind.num_dropped, is_open=is_open))
        for column, store in part.prompts.items():
            _copy(plan, store, _Range(base), {split: prompts[column, split] for split in SPLITS})
        counts = asdict(part.counts)
        control_tokens.update(counts.pop("num_control_tokens"))
        chat_control_tokens.update(counts.pop("num_chat_control_tokens"))
        sums.update({name: value for name, value in counts.items() if name not in ("room", "num_tokens")})
        sums["num_inexact_cuts"] += not behind.is_exact
        before = behind
    texts.close()
    for prompt_writer in prompts.values():
        prompt_writer.close()
    # Conversations are kept whole: the end of the text serves only where no conversation is held out.
    is_end_of_text = not texts.has_conversations_held_out and hold_out_end(
        directory, plan.config, plan.dtype, marks_cut=len(plan.beginning_ids) > 0
    )
    return TokenizationCounts(
        **sums,
        num_control_tokens=dict(control_tokens),
        num_chat_control_tokens=dict(chat_control_tokens),
        validation_is_end_of_text=is_end_of_text,
    )


def prompt_dirs(plan: TokenizationPlan, directory: Path) -> dict[tuple[str, str], Path]:
    """Return the directory of each store of prompts, by column and split."""
    return {
        (column, split): directory / f"{name}-{split}"
        for column, name in prompt_names(plan).items()
        for split in SPLITS
    }


class _TextWriters:
    """The stores of documents by split. Texts are copied as they lie, conversations and pairs one by one."""

    def __init__(self, plan: TokenizationPlan, directory: Path) -> None:
        self._plan = plan
        self._plain: dict[str, TokenWriter] = {}
        self._whole: dict[str, DocumentWriter] = {}
        if plan.config.marks_wanted:
            self._whole = {split: _document_writer(plan, directory / split) for split in SPLITS}
        else:
            self._plain = {split: TokenWriter(directory / split, plan.dtype) for split in SPLITS}

    @property
    def has_conversations_held_out(self) -> bool:
        """Whether a conversation or a pair is for validation."""
        return bool(self._whole) and self._whole["validation"].num_tokens > 0

    def copy(self, store: NumberedStore, part: _Range) -> None:
        """Append the documents of a part."""
        if self._plain:
            _copy(self._plan, store, part, self._plain)
            return
        for split, first, last in _runs(self._plan, store, part.base):
            for index in range(first, last):
                self._whole[split].write(_piece(store, index))

    def close(self) -> None:
        """Write the last document's end, and close the files."""
        for plain in self._plain.values():
            plain.close()
        for whole in self._whole.values():
            whole.close()


def _document_writer(plan: TokenizationPlan, directory: Path) -> DocumentWriter:
    eos_token_id = plan.tokenizer.eos_token_id
    return DocumentWriter(
        directory,
        plan.dtype,
        block_tokens=plan.config.block_size + 1,
        num_beginning=len(plan.beginning_ids),
        filler_id=0 if eos_token_id is None else eos_token_id,
    )


def _piece(store: NumberedStore, index: int) -> Piece:
    tokens = store.place(index)
    return Piece(store.tokens[tokens], None if store.is_wanted is None else store.is_wanted[tokens])


def _copy(plan: TokenizationPlan, store: NumberedStore, part: _Range, writers: dict[str, TokenWriter]) -> None:
    """Append the documents of a store, each to the writer of its split."""
    end = store.num_tokens - part.num_dropped
    for split, first, last in _runs(plan, store, part.base):
        start, stop = max(store.place(first).start, part.num_skipped), min(int(store.ends[last - 1]), end)
        goes_on = part.is_open and last == len(store.ends)
        writers[split].extend(store, start, stop, store.ends[first : last - goes_on])


def _runs(plan: TokenizationPlan, store: NumberedStore, base: int) -> Iterator[tuple[str, int, int]]:
    """Yield the split and the indices [first, last) of neighbouring documents that are of one split, in order."""
    for start in range(0, len(store.numbers), _DOCUMENTS_AT_ONCE):
        numbers = store.numbers[start : start + _DOCUMENTS_AT_ONCE]
        held_out = is_held_out(plan.config, base + numbers)
        cuts = np.flatnonzero(held_out[1:] != held_out[:-1]) + 1
        for first, last in itertools.pairwise([0, *cuts.tolist(), len(numbers)]):
            yield SPLITS[int(held_out[first])], start + first, start + last


def _with_following(parts: Iterable[TokenizedPart]) -> Iterator[tuple[TokenizedPart, TokenizedPart | None]]:
    """Yield each part with the one after it, None after the last."""
    before = None
    for part in parts:
        if before is not None:
            yield before, part
        before = part
    if before is not None:
        yield before, None


def _head_of(part: TokenizedPart | None) -> Encoded:
    assert part is not None
    assert part.head is not None
    return part.head
