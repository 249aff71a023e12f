"""Check that a model can read the rows of a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from storage.errors import UnusableModelError
from storage.reading.cache import Cache
from storage.records.identity import SPLITS
from storage.rows.kinds import KINDS
from storage.tensors.checkpoints.blame import blaming_files
from storage.tensors.model_facts import context_length_of
from student.errors import NoSuchStudentError, StudentContextError, VocabularyMismatchError
from student.model.architecture import check_architecture, num_vocabulary_rows
from student.model.loading import load_student
from student.model.tokenizers import check_tokenizer, load_cache_tokenizer


def load_fitting_student(directory: Path, cache: Cache) -> Any:
    """Return a saved student that can read the rows of `cache`.

    Raise NoSuchStudentError, the errors of check_fits (VocabularyMismatchError, StudentContextError, ArchitectureError,
    BrokenStudentError), and those of check_tokenizer (TokenizerMismatchError or a CacheError).
    """
    model = load_student(directory)
    try:
        with blaming_files(str(directory), {}):
            check_fits(model, cache, str(directory))
    except UnusableModelError as error:
        raise NoSuchStudentError(str(directory), error.reason) from error
    check_tokenizer(directory, cache)
    return model


def check_fits(model: Any, cache: Cache, name: str) -> None:
    """Raise VocabularyMismatchError or StudentContextError when the model cannot read the cache's rows.

    The vocabularies of student and teacher may differ in rows that stand for no token.

    Raise the errors of check_architecture and of load_cache_tokenizer too. name: the student's name in messages.
    """
    num_rows = num_vocabulary_rows(model)
    if num_rows < cache.identity.vocab_size and num_rows < (needed := num_token_ids(cache)):
        raise VocabularyMismatchError(name, num_rows, needed)
    longest = longest_rows(cache)
    check_architecture(model, name, max(longest.values(), default=1))
    context_length = context_length_of(model)
    for what, needed in longest.items():
        if needed > context_length:
            raise StudentContextError(name, context_length, needed, what)


def num_token_ids(cache: Cache) -> int:
    """Return how many rows a vocabulary must have for the tokens of a cache; the teacher's if it has no tokenizer.

    Raise the errors of load_cache_tokenizer.
    """
    if not cache.tokenizer_dir.is_dir():
        return cache.identity.vocab_size
    largest = max(load_cache_tokenizer(cache).get_vocab().values(), default=0)
    return min(largest + 1, cache.identity.vocab_size)


def longest_rows(cache: Cache) -> dict[str, int]:
    """Return the longest sequence in tokens that each kind in the cache may hold, by its rows' name in messages."""
    return {
        kind.sequences: sum(cache.setting(*names) for names in kind.longest_row_settings)
        for kind in KINDS.values()
        if any(cache.num_rows(kind.name, split) for split in SPLITS)
    }
