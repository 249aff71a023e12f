"""What is put is consumed in order behind whoever puts it, and a failure on either side reaches the other."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator

import pytest

from pipeline.work.write_behind import write_behind
from storage.errors import StoppedError


class Broken(Exception):
    """The injected failure."""


@pytest.mark.parametrize("num_items", [0, 1, 3, 100])
def test_everything_is_consumed_in_order(num_items: int) -> None:
    seen: list[int] = []
    with write_behind(seen.extend, 3) as put:
        for item in range(num_items):
            put(item)
    assert seen == list(range(num_items))


def put_all(
    items: Iterable[int],
    consume: Callable[[Iterator[int]], None],
    told: Callable[[int], None] = lambda _: None,
    hurry: Callable[[], None] = lambda: None,
) -> None:
    """Put items behind a consumer; an item None is the failure of whoever puts."""
    with write_behind(consume, 3, hurry) as put:
        for item in items:
            if item is None:
                raise Broken
            put(item)
            told(item)


def failing_after(count: int) -> Callable[[Iterator[int]], None]:
    def consume(items: Iterator[int]) -> None:
        for _ in range(count):
            next(items)
        raise Broken

    return consume


@pytest.mark.parametrize("consumed", [0, 1, 5, 20])
def test_a_failure_of_the_consumer_reaches_whoever_puts(consumed: int) -> None:
    put_items: list[int] = []
    with pytest.raises(Broken):
        put_all(range(10_000), failing_after(consumed), put_items.append)
    assert consumed <= len(put_items) < 10_000


def test_a_failure_behind_the_last_item_is_raised_at_the_end() -> None:
    def consume(items: Iterator[int]) -> None:
        list(items)
        raise Broken

    with pytest.raises(Broken):
        put_all([1], consume)


def test_the_consumer_never_takes_a_part_for_the_whole() -> None:
    finished: list[list[int]] = []
    with pytest.raises(Broken):
        put_all([1, None], lambda items: finished.append(list(items)))
    assert finished == []


@pytest.mark.parametrize("num_items", [1, 50])
def test_a_writer_that_is_waited_for_is_hurried_when_the_user_stops(num_items: int) -> None:
    """Ctrl-C comes when all is put and the writer still waits for a network, or when there is no room to put more."""
    is_hurried, was_in_time = threading.Event(), list[bool]()
    main = threading.main_thread().ident
    assert main is not None

    def consume(items: Iterator[int]) -> None:
        next(items)
        threading.Timer(0.2, signal.pthread_kill, (main, signal.SIGINT)).start()
        was_in_time.append(is_hurried.wait(20))
        list(items)

    with pytest.raises(KeyboardInterrupt):
        put_all(range(num_items), consume, hurry=is_hurried.set)
    assert was_in_time == [True]


def test_the_failure_of_the_consumer_is_told_and_not_what_it_stopped() -> None:
    """Both wait for one network: when the consumer gives up, the others' waiting ends in a StoppedError."""
    has_stopped = threading.Event()

    def consume(items: Iterator[int]) -> None:
        next(items)
        has_stopped.set()
        raise Broken

    def stopped(item: int) -> None:
        has_stopped.wait(60)
        raise StoppedError

    with pytest.raises(Broken):
        put_all([1], consume, stopped)
