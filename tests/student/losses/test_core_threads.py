"""Threads that share parts: which parts there are, who runs them, and in which of PyTorch's modes."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator

import pytest
import torch

from student.losses import core_threads
from student.losses.core_threads import parts_of, run_parts
from tests.operator_threads import operator_threads

PARTS = [slice(start, start + 1) for start in range(16)]


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    with operator_threads(2):
        yield


@pytest.mark.parametrize("num_threads", [1, 2, 3, 5, 24])
@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 100])
def test_parts_cover_everything_once(monkeypatch: pytest.MonkeyPatch, length: int, num_threads: int) -> None:
    monkeypatch.setattr(core_threads, "_LEAST_NUMBERS", 0)
    with operator_threads(num_threads):
        parts = parts_of(length, torch.empty(length, 2))
    assert [i for part in parts for i in range(length)[part]] == list(range(length))
    assert all(part.start < part.stop for part in parts) or length == 0
    assert 1 <= len(parts) < 16 + num_threads


def test_few_numbers_are_one_part() -> None:
    few, enough = torch.empty(1 << 13, 1 << 10)[:-1], torch.empty(1 << 13, 1 << 10)
    assert (len(parts_of(64, few)), len(parts_of(64, enough))) == (1, 16)


def test_a_slow_thread_takes_fewer_parts_and_results_keep_their_order() -> None:
    """The first part ends after all others. Equal shares would wait for each other here."""
    others_are_done = threading.Semaphore(0)

    def run(part: slice) -> int:
        if part.start:
            others_are_done.release()
        else:
            assert all(others_are_done.acquire(timeout=30) for _ in PARTS[1:])
        return part.start

    assert run_parts(run, PARTS) == list(range(16))


def test_operators_have_one_thread_in_parts_and_all_threads_elsewhere() -> None:
    assert run_parts(lambda part: torch.get_num_threads(), PARTS) == [1] * 16
    assert run_parts(lambda part: torch.get_num_threads(), PARTS[:1]) == [2]
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [torch.get_num_threads()] == [2]


@pytest.mark.parametrize("parts", [PARTS, PARTS[:1]], ids=["threads", "caller"])
def test_parts_run_in_the_modes_of_the_caller(parts: list[slice]) -> None:
    weight = torch.ones(16, requires_grad=True)
    assert not any(product.requires_grad for product in run_parts(lambda part: weight[part] * 2, parts))
    with torch.inference_mode():
        values = torch.zeros(16)
        found = run_parts(lambda part: values[part].add_(1.0), parts)
    assert values.sum() == len(parts)
    assert all(value.is_inference() for value in found)


def test_an_error_in_a_part_is_raised() -> None:
    def run(part: slice) -> None:
        if part.start == 7:
            raise torch.OutOfMemoryError("part 7")

    with pytest.raises(torch.OutOfMemoryError, match="part 7"):
        run_parts(run, PARTS)


def test_a_forked_process_has_threads_of_its_own() -> None:
    assert run_parts(lambda part: part.start, PARTS) == list(range(16))
    context = multiprocessing.get_context("fork")
    child = context.Process(target=lambda: run_parts(lambda part: part.start, PARTS), daemon=True)
    child.start()
    child.join(30)
    assert child.exitcode == 0
