"""mosaicml-streaming: MDS shards, read through a local copy of a remote directory as its quick start shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from scripts.support.rows import ARRAY_TYPES, Row, RowSet
from scripts.support.system import System

_COLUMNS = {"row_id": "int"} | {name: f"ndarray:{dtype}" for name, dtype in ARRAY_TYPES.items()}
_BATCH_ROWS = 32
# The default is a minute, which would make a missing shard look like a hang.
_DOWNLOAD_TIMEOUT_S = 2.0


def writer(**settings: Any) -> Callable[[Path, RowSet], None]:
    """Return a writer that passes `settings` to the library's MDSWriter."""

    def write(directory: Path, rows: RowSet) -> None:
        streaming = import_module("streaming")
        with streaming.MDSWriter(out=str(directory), columns=_COLUMNS, size_limit=rows.shard_bytes, **settings) as out:
            for row_id in range(rows.num_rows):
                out.write(rows.make_row(row_id))

    return write


def loader(directory: Path, local: Path, batch_rows: int, collate: Callable[[list[Row]], Any], **settings: Any) -> Any:
    """Return a loader of shuffled batches of `directory`, which is copied to `local` and read there.

    num_workers, if given, is passed to PyTorch's loader, and the other settings to StreamingDataset.
    """
    num_workers = settings.pop("num_workers", 0)
    dataset = import_module("streaming").StreamingDataset(
        remote=str(directory), local=str(local), batch_size=batch_rows, shuffle=True, **settings
    )
    data_loader = import_module("torch.utils.data").DataLoader
    return data_loader(dataset, batch_size=batch_rows, collate_fn=collate, num_workers=num_workers)


def _reader(**settings: Any) -> Callable[[Path, Path], Iterator[Row]]:
    def read(directory: Path, scratch: Path) -> Iterator[Row]:
        # Killed readers leave shared memory behind, which makes later readers fail.
        clean = import_module("streaming.base.util").clean_stale_shared_memory
        clean()
        try:
            settings_with_limit = {"download_timeout": _DOWNLOAD_TIMEOUT_S} | settings
            batches = loader(directory, scratch / "local", _BATCH_ROWS, list, **settings_with_limit)
            for batch in batches:
                yield from batch
        finally:
            clean()  # the process ends without running the library's exit handlers

    return read


def _system(name: str, configuration: str, write: dict[str, Any], read: dict[str, Any]) -> System:
    return System(
        module=__name__,
        name=name,
        configuration=configuration,
        needs=("streaming", "torch.utils.data"),
        distributions=("mosaicml-streaming", "torch", "numpy"),
        data_suffixes=(".mds", ".mds.zstd"),
        write=writer(**write),
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
