"""--plan: say what a run would make of a large text, from a sample of the text."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import PrecomputeConfig
from pipeline.corpus.blocks import Blocks
from pipeline.corpus.tokenization import TokenizedCorpus
from pipeline.corpus.tokenized_rows import RowTokenizer
from pipeline.corpus.validation_split import is_held_out
from pipeline.estimate import Whole, render_plan
from pipeline.identity import facts_of
from pipeline.job import Loaded, lay_out, load_teacher_and_source, tokenize, with_producers
from pipeline.run import as_begun, begun_lines
from pipeline.sources.data_files import format_of
from pipeline.sources.documents import Part
from pipeline.sources.sample.fragments import Sample
from pipeline.sources.sample.ratio import Estimate, ratio_total
from pipeline.sources.sample.sample import take_sample
from storage.draws import hash_permutation
from storage.writing.destinations import open_destination

# The first tokens of a text are read in seconds.
_FEW_TOKENS = 1 << 20
_SPREAD_DRAW = 10


def plan_from_sample(config: PrecomputeConfig) -> str:
    """Load the teacher, tokenize a sample of the text, and return the plan. A small text is read whole.

    Raises the errors of `plan_only`; CacheMismatchError only for what is known without reading the text.
    """
    destination = open_destination(config.out, config.work_dir)
    config = as_begun(config, destination)
    begun = destination.published_plan()
    loaded = _unread(load_teacher_and_source(config), begun.data["fingerprint"] if begun else "")
    destination.require_same_facts(facts_of(loaded))
    is_short = config.max_tokens is not None and config.max_tokens <= _FEW_TOKENS
    sample = None if is_short else take_sample(config, loaded.corpus)
    with tempfile.TemporaryDirectory() as directory:
        return "\n".join([*begun_lines(destination), _plan(loaded, sample, Path(directory))])


def _plan(loaded: Loaded, sample: Sample | None, directory: Path) -> str:
    if sample is None:
        return render_plan(lay_out(loaded, directory))
    sampled = _sampled(loaded, sample)
    tokenized = tokenize(sampled, directory)
    return render_plan(with_producers(sampled, _spread(tokenized)), _whole(loaded, sample, tokenized))


def _unread(loaded: Loaded, fingerprint: Any) -> Loaded:
    """Return the same with this fingerprint: the true one takes the time of reading every byte."""
    return dataclasses.replace(loaded, corpus=dataclasses.replace(loaded.corpus, fingerprint_of=lambda: fingerprint))


def _sampled(loaded: Loaded, sample: Sample) -> Loaded:
    """Return the same with the sample in place of the text."""
    documents = [
        fragment.document for readings in sample.readings for reading in readings for fragment in reading.fragments
    ]
    part = Part(documents=lambda: iter(documents))
    corpus = dataclasses.replace(loaded.corpus, parts=lambda _: [part])
    config = dataclasses.replace(loaded.config, max_tokens=None)
    return dataclasses.replace(loaded, config=config, corpus=corpus)


class _SpreadBlocks(Blocks):
    """The same blocks in an order in which neighbours come from anywhere, so that a few stand for all."""

    def __init__(self, blocks: Blocks) -> None:
        self._blocks, self._order = blocks, hash_permutation(len(blocks), _SPREAD_DRAW)

    def __len__(self) -> int:
        return len(self._order)

    @property
    def num_beginning(self) -> int:
        return self._blocks.num_beginning

    @property
    def marks_wanted(self) -> bool:
        return self._blocks.marks_wanted

    def input_ids(self, start: int, stop: int) -> NDArray[Any]:
        return np.concatenate([self._blocks.input_ids(i, i + 1) for i in self._order[start:stop]])

    def is_wanted(self, start: int, stop: int) -> NDArray[np.bool_] | None:
        if not self.marks_wanted:
            return None
        return np.concatenate([self._blocks.is_wanted(i, i + 1) for i in self._order[start:stop]])

    def segment_lengths(self, index: int) -> NDArray[np.int64]:
        return self._blocks.segment_lengths(self._order[index])


def _spread(tokenized: TokenizedCorpus) -> TokenizedCorpus:
    return dataclasses.replace(
        tokenized, blocks={split: _SpreadBlocks(blocks) for split, blocks in tokenized.blocks.items()}
    )


@dataclass(frozen=True, kw_only=True)
class _WindowCounts:
    """Tokens and ends of documents with text, both in proportion to the source's own bytes, by window."""

    num_tokens: list[float]
    num_documents: list[float]
    num_bytes: list[float]
    tokens_read: int


def _counted(loaded: Loaded, sample: Sample) -> _WindowCounts:
    """Tokenize the fragments of each window, and count what is theirs alone."""
    rows = RowTokenizer(loaded.teacher.tokenizer, loaded.config)
    places = [
        (index, reading.density, fragment)
        for index, readings in enumerate(sample.readings)
        for reading in readings
        for fragment in reading.fragments
    ]
    num_tokens, num_documents = ([0.0] * len(sample.windows) for _ in range(2))
    tokens_read = 0
    tokenized = rows.tokenized(fragment.document for _, _, fragment in places)
    for (index, density, fragment), (_, pieces) in zip(places, tokenized, strict=True):
        found = sum(len(piece.ids) for piece in pieces or ())
        if fragment.begins and fragment.ends and found < 2:
            continue
        has_end = (
            fragment.ends
            and not rows.ends_itself(fragment.document)
            and loaded.teacher.tokenizer.eos_token_id is not None
        )
        num_tokens[index] += density * (found + has_end)
        num_documents[index] += density * fragment.ends
        tokens_read += found + has_end
    num_bytes = [math.fsum(reading.num_bytes for reading in readings) for readings in sample.readings]
    return _WindowCounts(
        num_tokens=num_tokens, num_documents=num_documents, num_bytes=num_bytes, tokens_read=tokens_read
    )


def _whole(loaded: Loaded, sample: Sample, tokenized: TokenizedCorpus) -> Whole:
    """Return what the sample says of the whole text."""
    config, counts = loaded.config, _counted(loaded, sample)
    stored = sum(store.num_tokens for store in tokenized.documents.values())
    tokens = ratio_total(sample.windows, counts.num_tokens, counts.num_bytes, sample.size)
    if config.marks_wanted:  # whole rows, which are lengthened to blocks and lose the beginnings of their templates
        tokens = tokens.times(Estimate(value=stored / counts.tokens_read))
    documents = ratio_total(sample.windows, counts.num_documents, counts.num_bytes, sample.size)
    if config.max_tokens is not None:
        share = tokens.at_most(config.max_tokens).value / tokens.value
        tokens, documents = tokens.at_most(config.max_tokens), documents.times(Estimate(value=share))
    return Whole(
        num_tokens=tokens,
        num_documents=documents,
        validation_share=_validation_share(loaded),
        growth=tokens.times(Estimate(value=1 / stored)),
        remarks=_remarks(sample),
    )


def _validation_share(loaded: Loaded) -> float:
    """Return the expected share of the tokens that is held out; of texts that are files, that of the files' bytes."""
    config, files = loaded.config, loaded.corpus.files
    if config.document_separator is not None or not files or any(format_of(file) != "text" for file in files):
        return config.validation_fraction
    sizes = np.array([file.stat().st_size for file in files])
    held_out = sizes[is_held_out(config, np.arange(len(files)))].sum()
    return float(held_out / sizes.sum()) if held_out else config.validation_fraction


def _remarks(sample: Sample) -> list[str]:
    """Return lines that say what was read, what was not, and what the intervals mean."""
    read, size = (_amount(number, sample.unit) for number in (sample.read_size, sample.size))
    lines = [
        f"{'read':<14}{read} of {size}, in {len(sample.windows)} places of {sample.num_read_files:,} of "
        f"{sample.num_files:,} file{'s' if sample.num_files > 1 else ''}; 95 of 100 samples have an interval that "
        "holds; --plan exact reads all"
    ]
    if sample.beginnings:
        named = sample.beginnings[0] + (", …" if len(sample.beginnings) > 1 else "")
        lines.append(
            f"{'':<14}of {named} the sample has the beginnings of files only: no interval says how the rest differs"
        )
    return lines


def _amount(number: float, unit: str) -> str:
    return f"{number / 1e6:,.1f} MB" if unit == "bytes" else f"{number:,.0f} {unit}"
