"""litdata: chunks written by `optimize`, read in place with its data loader."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from scripts.peers.rows import NUM_ROWS, SHARD_BYTES, Row, RowMaker
from scripts.peers.system import System

_BATCH_ROWS = 32
_NUM_WORKERS = 2
# Its defaults of two minutes and half a minute would make a missing chunk look like a hang.
_SHORT_WAITS = {"MAX_WAIT_TIME": "2", "FORCE_DOWNLOAD_TIME": "1"}


def _writer(**settings: Any) -> Callable[[Path, RowMaker], None]:
    def write(directory: Path, make_row: RowMaker) -> None:
        import_module("litdata").optimize(
            fn=make_row,
            inputs=list(range(NUM_ROWS)),
            output_dir=str(directory),
            chunk_bytes=SHARD_BYTES,
            num_workers=_NUM_WORKERS,
            start_method="fork",  # spawned workers import torch for seconds before they write
            **settings,
        )

    return write


def _read(directory: Path, scratch: Path) -> Iterator[Row]:
    litdata = import_module("litdata")
    dataset = litdata.StreamingDataset(str(directory), shuffle=True)
    for batch in litdata.StreamingDataLoader(dataset, batch_size=_BATCH_ROWS, collate_fn=list):
        yield from batch


def _system(name: str, configuration: str, settings: dict[str, Any]) -> System:
    return System(
        module=__name__,
        name=name,
        configuration=configuration,
        needs=("litdata",),
        distributions=("litdata", "torch", "numpy"),
        data_suffixes=(".bin",),
        write=_writer(**settings),
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
