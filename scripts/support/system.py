"""What one column of the comparison is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from scripts.support.rows import Row, RowSet


@dataclass(frozen=True, kw_only=True)
class System:
    """A storage format with its writer and reader in one configuration.

    write(directory, rows) is what a user would run again after a crash.
    read(directory, scratch) yields an epoch's rows in any order; it may keep a cache in `scratch`, an empty directory.
    """

    module: str
    """Where it stands in SYSTEMS; importing that imports nothing that a peer needs."""
    name: str
    configuration: str
    needs: tuple[str, ...]
    """What has to be importable."""
    distributions: tuple[str, ...]
    """Packages whose versions decide the outcome."""
    data_suffixes: tuple[str, ...]
    """Names of files that hold rows end so; all other files tell about them."""
    write: Callable[[Path, RowSet], None]
    read: Callable[[Path, Path], Iterator[Row]]
    environment: dict[str, str] = field(default_factory=dict)
    is_peer: bool = True
