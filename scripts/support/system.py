"""A storage format in one configuration: one column of the comparison in scripts/peers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from scripts.support.rows import Row, RowSet


@dataclass(frozen=True, kw_only=True)
class System:
    """A storage format with its writer and reader in one configuration.

    write(directory, rows): writes the rows; a user would call it again after a crash.
    read(directory, scratch): yields the rows of an epoch in any order; it may use `scratch`, which is empty at first.
    """

    module: str
    """Module whose SYSTEMS holds this system. Importing the module does not import the library."""
    name: str
    configuration: str
    needs: tuple[str, ...]
    """Modules that must be importable."""
    distributions: tuple[str, ...]
    """Packages whose versions the report names, because the outcome depends on them."""
    data_suffixes: tuple[str, ...]
    """Suffixes of files that hold rows. All other files hold indexes and records."""
    write: Callable[[Path, RowSet], None]
    read: Callable[[Path, Path], Iterator[Row]]
    environment: dict[str, str] = field(default_factory=dict)
    is_peer: bool = True
