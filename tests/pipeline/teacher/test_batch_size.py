"""Passes are halved when memory runs out, and every row still comes once and in order."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch

from pipeline.errors import TeacherMemoryError
from pipeline.teacher.batch_size import choose_batch_tokens, in_passes


def rows_fitting(most_rows: int, start: int, stop: int, rows_per_pass: int) -> list[tuple[int, int]]:
    def run(first: int, end: int) -> tuple[int, int]:
        if end - first > most_rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nand more")
        return first, end

    return list(in_passes(run, start, stop, rows_per_pass))


@pytest.mark.parametrize("most_rows", [1, 3, 16, 100])
@pytest.mark.parametrize(("start", "stop"), [(0, 41), (5, 6), (7, 7)])
def test_every_row_comes_once_and_in_order(most_rows: int, start: int, stop: int, capsys: object) -> None:
    passes = rows_fitting(most_rows, start, stop, 16)
    assert [row for first, end in passes for row in range(first, end)] == list(range(start, stop))
    assert all(end - first <= min(most_rows, 16) for first, end in passes)


def test_passes_are_halved_until_they_fit_and_stay_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert [end - first for first, end in rows_fitting(5, 0, 41, 16)] == [4] * 10 + [1]
    assert capsys.readouterr().err.splitlines() == [
        "out of memory: going on with 8 rows a pass",
        "out of memory: going on with 4 rows a pass",
    ]


def test_a_row_that_does_not_fit_is_one_line() -> None:
    with pytest.raises(
        TeacherMemoryError, match=r"single row in a pass \(CUDA out of memory. Tried to allocate 2.00 GiB\)"
    ):
        rows_fitting(0, 0, 5, 4)


def test_other_errors_stay_what_they_are() -> None:
    def run(first: int, end: int) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        list(in_passes(run, 0, 4, 2))


def test_what_was_asked_for_is_taken(helpers: ModuleType, tmp_path: Path) -> None:
    config = helpers.tiny_config(tmp_path, tmp_path, tmp_path, batch_tokens=77)
    assert choose_batch_tokens(None, config) == 77  # type: ignore[arg-type]


@pytest.mark.gpu
def test_a_gpu_s_free_memory_decides(helpers: ModuleType, teacher_dir: Path, text_file: Path, tmp_path: Path) -> None:
    from pipeline.teacher.loading import load_teacher

    config = helpers.tiny_config(teacher_dir, text_file, tmp_path, batch_tokens=None, device="cuda")
    chosen = choose_batch_tokens(load_teacher(config), config)
    assert 1024 <= chosen <= 65_536
    assert chosen & (chosen - 1) == 0
