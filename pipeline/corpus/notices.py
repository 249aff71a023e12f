"""Say what a user should know of how the texts were tokenized."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.config import PrecomputeConfig

_MOST_NAMED = 3


def tokenization_notices(config: PrecomputeConfig, facts: Mapping[str, Any]) -> list[str]:
    """Return one line for each fact of TokenizationCounts that a user may want to act on."""
    source, lines = config.data, []
    if num_bad_rows := facts.get("num_bad_rows"):
        lines.append(f"--data {source}: bad rows skipped: {num_bad_rows:,}")
    if spelt_out := facts.get("num_control_tokens"):
        most_frequent = _by_count(spelt_out)[0][0]
        remedy = f" If one separates the documents of a text file, name it: --document-separator '{most_frequent}'"
        lines.append(
            f"--data {source}: the text spells out {_named(spelt_out)}; they were read as characters."
            f"{'' if config.document_separator or config.marks_wanted else remedy}"
        )
    if in_chats := facts.get("num_chat_control_tokens"):
        lines.append(
            f"--data {source}: messages of chats spell out {_named(in_chats)}; a chat template cannot tell them from "
            "its own, so the teacher reads them as control tokens. Take them out of the messages if they mean none"
        )
    if num_cuts := facts.get("num_inexact_cuts"):
        lines.append(
            f"--data {source}: {num_cuts:,} cuts of long documents stand where the tokenizer reads a stretch without "
            "end; tokens beside them may differ from those of the whole document at once. Add spaces or line breaks"
        )
    return lines


def _named(counts: Mapping[str, int]) -> str:
    """Return the control tokens with their counts, the most frequent first."""
    ordered = _by_count(counts)
    named = ", ".join(
        f"{token} {count:,} {'time' if count == 1 else 'times'}" for token, count in ordered[:_MOST_NAMED]
    )
    return named + (f" and {len(ordered) - _MOST_NAMED} other control tokens" if len(ordered) > _MOST_NAMED else "")


def _by_count(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))
