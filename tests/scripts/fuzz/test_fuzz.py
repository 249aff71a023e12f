"""Random damage with checksums that agree: it is read and all rules hold, or it is refused with an error of ours.

The targets and the rules are those of scripts/fuzz, which runs them for as long as one likes.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scripts.fuzz.config import Name
from scripts.fuzz.mutators import containers, mutate_bytes
from scripts.fuzz.targets import Target, make_target
from scripts.fuzz.worker import FuzzFailureError, Worker
from scripts.support.arrow_file import ArrowFile
from tests.places import GOLDEN

ERRORS = {"RecordError", "FormatVersionError", "UnsafePathError"}

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(2**80), max_value=2**80)
    | st.floats()
    | st.text(st.characters(), max_size=40)
    | st.sampled_from(["..", "/dev/zero", "a" * 300, "\0", "\ud800", 10**400, 5e-324]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def damaged_records(draw: st.DrawFn, good: list[bytes]) -> bytes:
    """A good record with one to three keys or items dropped, renamed, repeated or given any other value."""
    content = json.loads(draw(st.sampled_from(good)))
    for _ in range(draw(st.integers(1, 3))):
        places = list(containers(content))
        if not places:
            break
        damage(draw, draw(st.sampled_from(places)))
    return json.dumps(content).encode()


def damage(draw: st.DrawFn, container: Any) -> None:
    key = draw(st.sampled_from(sorted(container) if isinstance(container, dict) else range(len(container))))
    action = draw(st.sampled_from(["replace", "replace", "drop", "repeat"]))
    if action == "replace":
        container[key] = draw(JSON_VALUES)
    elif action == "drop":
        del container[key]
    elif isinstance(container, dict):
        container[draw(st.text(max_size=8))] = container[key]
    else:
        container.append(container[key])


@st.composite
def damaged_bytes(draw: st.DrawFn, good: list[bytes]) -> bytes:
    """A good input with a few bytes, or numbers of 4 and 8 bytes, put in place of others behind the first byte.

    In a shard every second place is one of a buffer, where values and offsets are.
    """
    content = bytearray(draw(st.sampled_from(good)))
    anywhere = st.integers(1, len(content) - 1)
    places = anywhere | st.sampled_from(places_in_buffers(bytes(content))) if b"ARROW1" in content else anywhere
    for _ in range(draw(st.sampled_from([1, 1, 2, 4]))):
        at = draw(places)
        width = draw(st.sampled_from([1, 1, 4, 8]))
        number = draw(st.integers(0, 256**width - 1) | st.sampled_from([0, 1, 2**7, 2**8 - 1, 2**31, 2**63 - 1, 2**63]))
        at -= (at - 1) % width  # numbers in an Arrow file are aligned
        content[at : at + width] = (number % 256**width).to_bytes(width, "little")[: len(content) - at]
    return bytes(content)


def places_in_buffers(data: bytes) -> list[int]:
    """Where an input of shards has bytes of buffers; the input begins with a byte that is not of the shard."""
    file = ArrowFile(data[1:])
    places: list[int] = []
    for index, block in enumerate(file.blocks):
        body_at = 1 + file.number("<q", block) + file.number("<i", block + 8)
        for buffer in file.buffers(index):
            start = body_at + file.number("<q", buffer)
            places += range(start, start + file.number("<q", buffer + 8))
    return places


@pytest.fixture(scope="module", params=["", "version_2", "version_3"], ids=["version 1", "version 2", "version 3"])
def scratch(request: pytest.FixtureRequest) -> Callable[[Path], Path]:
    """Makes a copy of the golden cache of each version."""
    return lambda directory: Path(shutil.copytree(GOLDEN / request.param / "cache", directory / "cache"))


@pytest.fixture(scope="module")
def target(scratch: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[Name], Target]:
    return lambda name: make_target(name, scratch(tmp_path_factory.mktemp(name)))


@pytest.fixture(scope="module")
def worker(
    scratch: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Name], Worker]]:
    workers: list[Worker] = []

    def start(name: Name) -> Worker:
        workers.append(Worker(name, scratch(tmp_path_factory.mktemp(name))))
        return workers[-1]

    yield start
    for one in workers:
        one.close()


def examples(number: int) -> settings:
    """Time is not what is tested, and one directory serves all examples."""
    unhealthy = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=number, suppress_health_check=unhealthy)


@pytest.mark.parametrize("name", ["manifest", "commit"])
def test_a_damaged_record_is_read_by_the_rules_or_refused(target: Callable[[Name], Target], name: Name) -> None:
    fuzzed = target(name)
    outcomes = set()

    @examples(400)
    @given(damaged_records(fuzzed.seeds))
    def run(data: bytes) -> None:
        outcomes.add(fuzzed.outcome(data))

    run()
    assert "RecordError" in outcomes
    assert outcomes <= ERRORS | {"read"}


@pytest.mark.parametrize("name", ["manifest", "commit"])
def test_the_bytes_of_a_record_may_be_anything(target: Callable[[Name], Target], name: Name) -> None:
    fuzzed = target(name)

    @examples(100)
    @given(st.binary(max_size=64) | damaged_bytes(fuzzed.seeds))
    def run(data: bytes) -> None:
        assert fuzzed.outcome(data) in ERRORS | {"read"}

    run()


@pytest.mark.parametrize(("name", "number"), [("arrow", 500), ("stream", 100)])
def test_a_damaged_shard_is_read_by_the_rules_or_refused(
    target: Callable[[Name], Target], worker: Callable[[Name], Worker], name: Name, number: int
) -> None:
    """In a process of its own: what pyarrow is given here might crash it."""
    seeds, reader = target(name).seeds, worker(name)
    outcomes = set()
    assert {reader.run(seed) for seed in seeds} == {"read"}

    @examples(number)
    @given(damaged_bytes(seeds))
    def run(data: bytes) -> None:
        outcomes.add(reader.run(data))

    run()
    assert outcomes == {"read", "RowError", "ShardFormatError"}


def test_a_crash_is_seen_and_the_next_input_is_read(worker: Callable[[Name], Worker]) -> None:
    reader = worker("commit")
    (seed, *_) = make_target("commit", reader.cache_dir).seeds
    reader.process.kill()
    with pytest.raises(FuzzFailureError, match="died"):
        reader.run(seed)
    assert reader.run(seed) == "read"


def test_mutations_are_a_function_of_the_seed() -> None:
    content = bytes(range(256))
    changed = [mutate_bytes(content, random.Random(seed)) for seed in (1, 1, 2)]
    assert changed[0] == changed[1] != changed[2]
