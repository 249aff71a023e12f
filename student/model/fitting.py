"""Check that a model can read the rows of a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from storage.reading.cache import Cache
from storage.records.identity import SPLITS
from storage.rows.kinds import KINDS
from storage.tensors.model_facts import context_length_of
from student.errors import (
    StudentContextError,
    VocabularyMismatchError,
)
from student.model.architecture import check_architecture, head_weight
from student.model.loading import load_student
from student.model.tokenizers import check_tokenizer


def load_fitting_student(directory: Path, cache: Cache) -> Any:
    """Return a saved student that can read the rows of `cache`.

    Raise NoSuchStudentError, the errors of check_fits (VocabularyMismatchError, StudentContextError, ArchitectureError,
    BrokenStudentError), and those of check_tokenizer (TokenizerMismatchError or a CacheError).
    """
    model = load_student(directory)
    check_fits(model, cache, str(directory))
    check_tokenizer(directory, cache)
    return model


def check_fits(model: Any, cache: Cache, name: str) -> None:
    """Raise VocabularyMismatchError or StudentContextError when the model cannot read the cache's rows.

    Raise the errors of check_architecture too. name: the student's name in messages.
    """
    vocab_size = head_weight(model).shape[0]
    if vocab_size != cache.identity.vocab_size:
        raise VocabularyMismatchError(name, vocab_size, cache.identity.vocab_size)
    longest = longest_rows(cache)
    check_architecture(model, name, max(longest.values(), default=1))
    context_length = context_length_of(model)
    for what, needed in longest.items():
        if needed > context_length:
            raise StudentContextError(name, context_length, needed, what)


def longest_rows(cache: Cache) -> dict[str, int]:
    """Return the longest sequence in tokens that each kind in the cache may hold, by its rows' name in messages."""
    return {
        kind.sequences: sum(cache.setting(*names) for names in kind.longest_row_settings)
        for kind in KINDS.values()
        if any(cache.num_rows(kind.name, split) for split in SPLITS)
    }
