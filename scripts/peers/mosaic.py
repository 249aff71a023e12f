"""mosaicml-streaming: MDS shards, read through a local cache of a remote directory as its quick start does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from scripts.peers.rows import ARRAY_TYPES, NUM_ROWS, SHARD_BYTES, Row, RowMaker
from scripts.peers.system import System

_COLUMNS = {"row_id": "int"} | {name: f"ndarray:{dtype}" for name, dtype in ARRAY_TYPES.items()}
_BATCH_ROWS = 32
# Its default of a minute would make a missing shard look like a hang.
_DOWNLOAD_TIMEOUT_S = 2.0


def _writer(**settings: Any) -> Callable[[Path, RowMaker], None]:
    def write(directory: Path, make_row: RowMaker) -> None:
        streaming = import_module("streaming")
        with streaming.MDSWriter(out=str(directory), columns=_COLUMNS, size_limit=SHARD_BYTES, **settings) as out:
            for row_id in range(NUM_ROWS):
                out.write(make_row(row_id))

    return write


def _reader(**settings: Any) -> Callable[[Path, Path], Iterator[Row]]:
    def read(directory: Path, scratch: Path) -> Iterator[Row]:
        # Readers that were killed leave shared memory behind, which later readers trip over.
        clean = import_module("streaming.base.util").clean_stale_shared_memory
        clean()
        try:
            dataset = import_module("streaming").StreamingDataset(
                remote=str(directory),
                local=str(scratch / "local"),
                batch_size=_BATCH_ROWS,
                shuffle=True,
                download_timeout=_DOWNLOAD_TIMEOUT_S,
                **settings,
            )
            loader = import_module("torch.utils.data").DataLoader(dataset, batch_size=_BATCH_ROWS, collate_fn=list)
            for batch in loader:
                yield from batch
        finally:
            clean()  # the process ends without the library's own handlers

    return read


def _system(name: str, configuration: str, write: dict[str, Any], read: dict[str, Any]) -> System:
    return System(
        module=__name__,
        name=name,
        configuration=configuration,
        needs=("streaming", "torch.utils.data"),
        distributions=("mosaicml-streaming", "torch", "numpy"),
        data_suffixes=(".mds", ".mds.zstd"),
        write=_writer(**write),
        read=_reader(**read),
    )


_HASHED = {"compression": "zstd", "hashes": ["sha1", "xxh64"]}

SYSTEMS = (
    _system("streaming", "defaults: no compression, no hashes", {}, {}),
    _system(
        "streaming, hashed",
        "zstd and hashes sha1, xxh64, not validated on reading, as its documentation advises for training",
        _HASHED,
        {},
    ),
    _system(
        "streaming, validated",
        "the same, with validate_hash='xxh64' on reading and exist_ok=True on writing",
        _HASHED | {"exist_ok": True},
        {"validate_hash": "xxh64"},
    ),
)
