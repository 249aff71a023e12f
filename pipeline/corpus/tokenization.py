"""Tokenize a corpus once, before the teacher runs, into token stores on disk that every process maps.

Costs: before the first row is made, a pass over the whole text, which processes share part by part, and 2 or 4 bytes of
disk per token, twice that while the parts are joined. Gains: the number of rows is known at the start, so the plan is a
pure function of configuration and data. Any process can read any row without reading the rows before it. Memory does
not grow with the text. A rerun reuses the parts, or all tokens, of an earlier run.

Every text and every pair ends with the tokenizer's end-of-text token if there is one; conversations end as their chat
template ends them. Prompts from columns have separate stores.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.config import PrecomputeConfig
from pipeline.corpus.blocks import Blocks
from pipeline.corpus.parts.joining import TokenizationCounts, join_parts, prompt_dirs
from pipeline.corpus.parts.sharing import SharedParts, staged
from pipeline.corpus.parts.writing import TokenizationPlan
from pipeline.corpus.token_store import TokenStore
from pipeline.errors import NoUsableTextError
from pipeline.sources.corpus import Corpus
from pipeline.work.claims import claimed
from storage.disk.files import write_file
from storage.records.identity import SPLITS

PACKING_RECIPE = (
    "documents in order, end-of-text after each, cut into blocks of block_size + 1 tokens; "
    "documents in a block see only themselves and positions start again at 0"
)
_TURNS_RECIPE = (
    "conversations end as their chat template ends them; conversations and pairs that fit into a block are not cut; "
)
_COUNTS_NAME = "counts.json"


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


def packing_recipe(config: PrecomputeConfig, beginning_ids: tuple[int, ...]) -> str:
    """Return how documents become blocks, in words for the manifest."""
    of_turns = _TURNS_RECIPE if config.marks_wanted else ""
    of_beginnings = "; every segment begins with beginning_ids" if beginning_ids else ""
    return f"{of_turns}{PACKING_RECIPE}{of_beginnings}"


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
    """Tokenize a corpus as a TokenizationPlan of these fields says; see tokenize_as_planned."""
    plan = TokenizationPlan(
        corpus=corpus,
        tokenizer=tokenizer,
        config=config,
        vocab_size=vocab_size,
        beginning_ids=beginning_ids,
        context_length=context_length,
    )
    return tokenize_as_planned(plan, work_dir)


def tokenize_as_planned(plan: TokenizationPlan, work_dir: Path) -> TokenizedCorpus:
    """Tokenize into `work_dir`, or reuse the tokens that an earlier run stored there.

    Processes that do so at once share the work. Prompts that leave no room for the completion are skipped and counted.
    Raises NoUsableTextError when the train split is shorter than one block, TokenBeyondVocabularyError for a
    text with a token that the teacher has no row for, BadRowError for a row that cannot be used, ChatTemplateError when
    conversations cannot be rendered.
    """
    if not work_dir.exists():
        parts = SharedParts(plan, work_dir)
        parts.make_all()
        with claimed(work_dir.parent, work_dir.name):
            if not work_dir.exists():  # no process joined them while this one waited
                _join(plan, parts, work_dir)
    tokenized = _open_stores(plan, work_dir)
    if len(tokenized.blocks["train"]) == 0:
        raise NoUsableTextError(
            plan.config.data,
            tokenized.counts.num_documents,
            tokenized.counts.num_documents_skipped,
            {split: store.num_tokens for split, store in tokenized.documents.items()},
            plan.config.block_size + 1,
        )
    return tokenized


def _join(plan: TokenizationPlan, parts: SharedParts, work_dir: Path) -> None:
    """Write the stores beside `work_dir`, then rename them. Without working locks, the first process to finish wins."""
    with parts.unless_joined(), staged(work_dir) as staging:
        counts = join_parts(plan, parts.needed(), staging)
        write_file(staging / _COUNTS_NAME, json.dumps(asdict(counts)).encode())
    parts.remove()


def _open_stores(plan: TokenizationPlan, work_dir: Path) -> TokenizedCorpus:
    prompts: dict[str, dict[str, TokenStore]] = {column: {} for column in plan.prompt_limits}
    for (column, split), directory in prompt_dirs(plan, work_dir).items():
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
