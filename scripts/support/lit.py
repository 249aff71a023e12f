"""litdata: `optimize` writes chunks, and its data loader reads them in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from scripts.support.rows import Row, RowSet
from scripts.support.system import System

_BATCH_ROWS = 32
_NUM_WORKERS = 2
# The defaults are two minutes and half a minute, which would make a missing chunk look like a hang.
_SHORT_WAITS = {"MAX_WAIT_TIME": "2", "FORCE_DOWNLOAD_TIME": "1"}


def writer(**settings: Any) -> Callable[[Path, RowSet], None]:
    """Return a writer that passes `settings` to litdata's `optimize`."""

    def write(directory: Path, rows: RowSet) -> None:
        import_module("litdata").optimize(
            fn=rows.make_row,
            inputs=list(range(rows.num_rows)),
            output_dir=str(directory),
            chunk_bytes=rows.shard_bytes,
            num_workers=_NUM_WORKERS,
            start_method="fork",  # spawned workers import torch for seconds before they write
            **settings,
        )

    return write


def loader(directory: Path, batch_rows: int, collate: Callable[[list[Row]], Any], num_workers: int = 0) -> Any:
    """Return a loader of shuffled batches that reads `directory` in place."""
    litdata = import_module("litdata")
    dataset = litdata.StreamingDataset(str(directory), shuffle=True)
    return litdata.StreamingDataLoader(
        dataset, batch_size=batch_rows, collate_fn=collate, num_workers=num_workers, shuffle=True
    )


def _read(directory: Path, scratch: Path) -> Iterator[Row]:
    for batch in loader(directory, _BATCH_ROWS, list):
        yield from batch


def _system(name: str, configuration: str, settings: dict[str, Any]) -> System:
    return System(
        module=__name__,
        name=name,
        configuration=configuration,
        needs=("litdata",),
        distributions=("litdata", "torch", "numpy"),
        data_suffixes=(".bin",),
        write=writer(**settings),
        read=_read,
        environment=_SHORT_WAITS,
    )


SYSTEMS = (
    _system("litdata", "defaults: no compression; two workers", {}),
    _system(
        "litdata, zstd",
        "zstd, and use_checkpoint=True to go on after a crash; two workers",
        {"compression": "zstd", "use_checkpoint": True},
    ),
)
