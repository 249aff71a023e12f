"""Say how a run's texts begin and end, and what is odd about it."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.job import Loaded
from storage.text.ends import unreachable_ends


def framing_lines(loaded: Loaded) -> list[str]:
    """Return lines for --plan: what begins every segment and prompt, the ends of a text, and the remarks."""
    begins = _named(loaded, loaded.beginning_ids)
    ends = _named(loaded, loaded.teacher.end_ids)
    return [
        f"{'begins':<12}every segment and prompt with {begins}"
        if begins
        else f"{'begins':<12}with nothing before the text",
        *([f"{'ends':<12}a text at {ends}"] if ends else []),
        *framing_remarks(loaded),
    ]


def framing_remarks(loaded: Loaded) -> list[str]:
    """Return what a user should know before a run: no end at all, none for documents, or ends that cannot come."""
    teacher, remarks = loaded.teacher, []
    if not teacher.end_ids:
        remarks.append("no end: neither tokenizer nor configs name an end of text, so texts run to --max-new-tokens")
    if teacher.tokenizer.eos_token_id is None:
        remarks.append("no end of documents: the tokenizer names no eos_token, so nothing marks where they end")
    for token_id, named_by in unreachable_ends(teacher.tokenizer, teacher.model, teacher.vocab_size).items():
        remarks.append(
            f"{named_by} names {token_id} as an end of text, and the model has rows for ids below "
            f"{teacher.vocab_size}: no text ends there; mend that file if texts should"
        )
    return remarks


def _named(loaded: Loaded, ids: Iterable[int]) -> str:
    tokenizer = loaded.teacher.tokenizer
    return ", ".join(f"{tokenizer.convert_ids_to_tokens(i)!r} (id {i})" for i in ids)
