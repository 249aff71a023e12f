"""Load the tokenizer of a student or of a cache, and compare the two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from storage.errors import RecordError, UnusableModelError
from storage.reading.cache import Cache
from storage.tensors.checkpoints.config_file import require_sound_config_file
from storage.text.tokenizer_files import load_tokenizer_files
from student.errors import NoSuchStudentError, TokenizerMismatchError, VocabularyMismatchError
from student.model.loading import AS_DATA

# The output may have rows that stand for no token: as many as the tokenizer has ids, and this many more.
_FREE_PADDED_ROWS = 1024


def load_tokenizer(directory: Path) -> Any:
    """Return the tokenizer saved in a student's directory; raise NoSuchStudentError when it cannot be loaded."""
    try:
        require_sound_config_file(directory, transformers.CONFIG_MAPPING)
        return load_tokenizer_files(transformers.AutoTokenizer, str(directory), **AS_DATA)
    except UnusableModelError as error:
        raise NoSuchStudentError(str(directory), error.reason) from error


def load_cache_tokenizer(cache: Cache) -> Any:
    """Return the tokenizer that is stored with a cache.

    Raise MissingFileError, UnsafePathError or HashMismatchError when its files are not those that the cache was begun
    with, RecordError when they are not a tokenizer, and VocabularyMismatchError when the cache's vocabulary is much
    larger than the tokenizer's. Ids beyond the vocabulary may exist: the rows of a cache hold none.
    """
    directory = cache.checked_tokenizer_dir()
    try:
        tokenizer = load_tokenizer(directory)
    except NoSuchStudentError as error:
        raise RecordError(str(directory), error.reason) from error
    vocab_size = cache.identity.vocab_size
    used = sum(token_id < vocab_size for token_id in tokenizer.get_vocab().values())
    if vocab_size > 2 * used + _FREE_PADDED_ROWS:
        raise VocabularyMismatchError(str(directory), used, vocab_size)
    return tokenizer


def check_tokenizer(student: Path, cache: Cache) -> None:
    """Raise TokenizerMismatchError when the tokenizers of student and cache give one id two different tokens.

    Do nothing when the student or the cache has no tokenizer. Raise the errors of load_tokenizer for the student's, and
    those of load_cache_tokenizer.
    """
    if not (student / "tokenizer_config.json").is_file() or not cache.tokenizer_dir.is_dir():
        return
    cached = {token_id: token for token, token_id in load_cache_tokenizer(cache).get_vocab().items()}
    for token, token_id in sorted(load_tokenizer(student).get_vocab().items(), key=lambda entry: entry[1]):
        if cached.get(token_id, token) != token:
            raise TokenizerMismatchError(str(student), token_id, token, cached[token_id])
