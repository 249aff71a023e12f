"""What an export is compared on: whole documents of validation blocks, or a file in pieces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage import Cache
from storage.rows import soft_targets
from student.errors import HeldOutTextError, VocabularyMismatchError
from student.export.held_out import cached_sequences, text_sequences
from student.model.framing import Framing
from student.model.loading import load_student
from student.model.tokenizers import load_tokenizer

UNFRAMED = Framing(beginning_ids=(), end_ids=())


def test_documents_of_validation_blocks_come_apart_in_order(cached_student: tuple[Path, Cache]) -> None:
    directory, cache = cached_student
    opened, sequences = cached_sequences(cache.path, load_student(directory), "student", 10**6)
    assert opened.path == cache.path
    rows = [soft_targets.decode(batch) for batch in cache.record_batches("soft_targets", "validation")]
    num_targets = sum(int(r.is_valid_target.sum()) for r in rows)
    assert sum(len(s) - 1 for s in sequences) == num_targets
    expected = []
    for r in rows:
        for ids, lengths in zip(r.input_ids.tolist(), r.segment_lengths, strict=True):
            for length in lengths.tolist():
                piece, ids = ids[:length], ids[length:]
                expected += [piece] if length > 1 else []
    assert [s.tolist() for s in sequences] == expected


@pytest.mark.parametrize("max_tokens", [2, 3, 50])
def test_no_more_tokens_than_asked_for(cached_student: tuple[Path, Cache], max_tokens: int) -> None:
    directory, cache = cached_student
    _, sequences = cached_sequences(cache.path, load_student(directory), "student", max_tokens)
    assert max_tokens - 1 <= sum(map(len, sequences)) <= max_tokens
    assert all(len(s) > 1 for s in sequences)


def test_a_file_is_cut_into_what_the_student_reads(odd_student: Path, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("abc" * 50)
    model, tokenizer = load_student(odd_student), load_tokenizer(odd_student)
    sequences = text_sequences(path, model, tokenizer, UNFRAMED, 140, "student")
    assert [len(s) for s in sequences] == [64, 64, 12]
    assert tokenizer.decode(np.concatenate(sequences)) == ("abc" * 50)[:140]


def test_pieces_begin_as_the_student_learnt_to(odd_student: Path, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("abc" * 50)
    model, tokenizer = load_student(odd_student), load_tokenizer(odd_student)
    framing = Framing(beginning_ids=(5, 6), end_ids=())
    sequences = text_sequences(path, model, tokenizer, framing, 140, "student")
    assert [len(s) for s in sequences] == [64, 64, 12]
    assert all(s[:2].tolist() == [5, 6] for s in sequences)
    assert tokenizer.decode(np.concatenate([s[2:] for s in sequences])) == ("abc" * 50)[:134]


@pytest.mark.parametrize("content", [b"", b"a", b"\xff\xfe\xff", None])
def test_a_file_without_text_is_refused(odd_student: Path, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(HeldOutTextError, match=r"text\.txt: no held-out text"):
        text_sequences(path, load_student(odd_student), load_tokenizer(odd_student), UNFRAMED, 100, "student")


def test_a_student_without_rows_for_the_caches_tokens_is_refused(
    cache: Cache, students: dict[str, Path], make_student: Callable[..., Any]
) -> None:
    with pytest.raises(VocabularyMismatchError, match="200"):
        cached_sequences(cache.path, make_student(vocab_size=200), "student", 100)
    with_more_rows = load_student(students["untied"])
    assert cached_sequences(cache.path, with_more_rows, "student", 100)[1]
