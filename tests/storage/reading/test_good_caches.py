"""The good cache that all hostile ones are made of, and one of each version."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage import verify_cache
from tests.places import GOLDEN
from tests.storage.reading.readers import (
    READERS,
    bounded,
    errors_of,
    print_head,
    print_summary,
    read_batches,
    read_epochs,
)


def test_the_cache_that_all_others_are_made_of_is_good(stranger: Path) -> None:
    assert verify_cache(stranger).problems == ()
    for read in READERS.values():
        assert errors_of(read, stranger) == []


@pytest.mark.parametrize("version", ["", "version_2", "version_3"], ids=["version 1", "version 2", "version 3"])
def test_a_cache_of_every_version_is_still_read(version: str) -> None:
    golden = GOLDEN / version / "cache"
    with bounded():
        assert verify_cache(golden).problems == ()
        for read in (read_epochs, read_batches, print_summary, print_head):
            assert errors_of(read, golden) == []
