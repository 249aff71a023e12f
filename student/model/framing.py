"""How a student's texts begin and end: what it was trained with, read from its own directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.rows.setting_rules import token_ids
from storage.text.beginnings import beginning_ids
from storage.text.ends import end_ids
from student.errors import CheckpointError, IdBeyondVocabularyError, PromptError
from student.model.architecture import num_vocabulary_rows
from student.run_record import BEGINNING, RUN_NAME, read_run


@dataclass(frozen=True, kw_only=True)
class Framing:
    """beginning_ids: what every prompt begins with, perhaps nothing. end_ids: the ids that end a text."""

    beginning_ids: tuple[int, ...]
    end_ids: tuple[int, ...]

    def begin(self, text_ids: list[int]) -> list[int]:
        """Return a prompt's ids, given those of its text. A prompt of nothing begins with an end of text."""
        return [*self.beginning_ids, *text_ids] or [self.end_ids[0] if self.end_ids else 0]


def read_framing(student: Path, model: Any, tokenizer: Any) -> Framing:
    """Return the framing of the student in a directory, with its model and tokenizer, which are loaded already.

    The beginning is that of the rows that it was trained on; run.json states it, and runs of earlier versions, which do
    not state one, had none. A model without a run.json begins as its tokenizer begins a text. Raise CheckpointError for
    a damaged run.json, and EndBeyondVocabularyError.
    """
    vocab_size = num_vocabulary_rows(model)
    run = read_run(student)
    found = run.get(BEGINNING, []) if run else list(beginning_ids(tokenizer, "auto"))
    if not token_ids(vocab_size)[0](found):
        raise CheckpointError(str(student / RUN_NAME), f"its {BEGINNING} is {found!r:.60}, expected ids of tokens")
    return Framing(beginning_ids=tuple(found), end_ids=end_ids(tokenizer, model, vocab_size))


def require_known_ids(ids: list[int], model: Any, tokenizer: Any, name: str) -> list[int]:
    """Return token ids; raise IdBeyondVocabularyError for one that the model has no row for. name: of the student."""
    vocab_size = num_vocabulary_rows(model)
    for token_id in ids:
        if token_id >= vocab_size:
            raise IdBeyondVocabularyError(name, str(tokenizer.convert_ids_to_tokens(token_id)), token_id, vocab_size)
    return ids


def require_unicode(prompt: str) -> None:
    """Raise PromptError when a prompt holds half of a surrogate pair, as bytes that are not UTF-8 become."""
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise PromptError(error.start) from error
