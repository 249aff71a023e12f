"""Writers and readers of blocks with sparse targets in each storage format. Readers shuffle and return tensors.

Importing this module does not import the other libraries. Every reader makes its tensors with the same function of
student.losses.batches.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from scripts.support import lit, mosaic
from scripts.support.rows import ARRAY_TYPES, Row, RowSet
from storage import Cache, RowStream, open_cache
from storage.rows.soft_targets import SoftTargetRows
from student.losses.batches import BlockBatch, block_batch, block_tensors

BATCH_ROWS = 16
_TAIL_WEIGHT = 1 / 32
_SHARD_BYTES = 64 << 20
# Sizes of the shuffle buffer, in rows, from the documentation of webdataset and datasets.
_WEB_SHUFFLED_ROWS, _PARQUET_SHUFFLED_ROWS = 1000, 1000
_NUM_FILES = 4

Epochs = Iterator[Iterator[BlockBatch]]
"""An endless sequence of epochs. Each epoch is an iterator of batches."""


@dataclass(frozen=True, kw_only=True)
class StreamSystem:
    """A storage format in one configuration.

    write(directory, cache): stores the rows of the cache. epochs(directory, scratch): opens them and yields epochs.
    """

    name: str
    folder: str
    """Directory of the files. Systems that read the same files have the same folder."""
    needs: str
    """Module that must be importable."""
    write: Callable[[Path, Cache], None]
    epochs: Callable[[Path, Path], Epochs]
    is_peer: bool = True
    """Whether its requirements conflict with ours, so that it runs in the other environment."""
    is_compressed: bool = True


def row_set(cache: Cache) -> RowSet:
    """Return the rows of the cache, each as the arrays that a user of another format would store."""
    rows_per_batch = cache.identity.record_batch_rows
    batches = list(_stored(cache))

    def make_row(row_id: int) -> Row:
        row = batches[row_id // rows_per_batch].slice(row_id % rows_per_batch, 1)
        arrays = {name: row.column(name).flatten().to_numpy(zero_copy_only=False) for name in ARRAY_TYPES}
        return {"row_id": row_id} | {name: array.astype(ARRAY_TYPES[name]) for name, array in arrays.items()}

    return RowSet(num_rows=cache.num_rows("soft_targets", "train"), shard_bytes=_SHARD_BYTES, make_row=make_row)


def ready(rows: list[Row]) -> BlockBatch:
    """Turn rows of another library into tensors with the function that rows of a cache use."""
    arrays = {name: [row[name] for row in rows] for name in ARRAY_TYPES}
    blocks = {name: np.stack(arrays[name]) for name in ARRAY_TYPES.keys() - {"ids", "logprobs", "segment_lengths"}}
    counts = {name: blocks.pop(name).astype(np.int64) for name in ("head_size", "tail_size")}
    return _tensors(
        SoftTargetRows(
            row_id=np.array([row["row_id"] for row in rows]),
            segment_lengths=[lengths.astype(np.int64) for lengths in arrays["segment_lengths"]],
            is_wanted=None,
            ids=np.concatenate(arrays["ids"]),
            logprobs=np.concatenate(arrays["logprobs"]),
            tempered_tail_logmass={},
            **blocks,
            **counts,
        )
    )


def _tensors(rows: SoftTargetRows) -> BlockBatch:
    return block_tensors(rows, tail_weight=_TAIL_WEIGHT, temperature=1.0, device=torch.device("cpu"))


def _stored(cache: Cache) -> Iterator[pa.RecordBatch]:
    return cache.record_batches("soft_targets", "train")


def _again_and_again(batches: Iterable[BlockBatch]) -> Epochs:
    while True:
        yield iter(batches)


def _our_epochs(directory: Path, scratch: Path) -> Epochs:
    stream = RowStream(open_cache(directory), "soft_targets", "train", batch_rows=BATCH_ROWS, seed=0)
    batches = (
        block_batch(batch.rows, tail_weight=_TAIL_WEIGHT, temperature=1.0, device=torch.device("cpu"))
        for batch in stream.batches()
    )
    while True:
        yield itertools.islice(batches, stream.num_rows // BATCH_ROWS)


def _write_nothing(directory: Path, cache: Cache) -> None:
    """Write nothing: our reader reads the cache itself."""


def _write_mosaic(directory: Path, cache: Cache) -> None:
    mosaic.writer(compression="zstd", hashes=["sha1"])(directory, row_set(cache))


def _mosaic_epochs(directory: Path, scratch: Path, **settings: Any) -> Epochs:
    import_module("streaming.base.util").clean_stale_shared_memory()
    return _again_and_again(mosaic.loader(directory, scratch / "local", BATCH_ROWS, ready, **settings))


def _write_lit(directory: Path, cache: Cache) -> None:
    lit.writer(compression="zstd")(directory, row_set(cache))


def _lit_epochs(directory: Path, scratch: Path, **settings: Any) -> Epochs:
    return _again_and_again(lit.loader(directory, BATCH_ROWS, ready, **settings))


def _write_web(directory: Path, cache: Cache) -> None:
    """Write tar files with one zstd frame per row: the lengths of its arrays, then their bytes."""
    compress = import_module("zstandard").ZstdCompressor(level=3).compress
    rows = row_set(cache)
    directory.mkdir(parents=True)
    with import_module("webdataset").ShardWriter(
        str(directory / "%05d.tar"), maxcount=rows.num_rows // _NUM_FILES
    ) as sink:
        for row_id in range(rows.num_rows):
            row = rows.make_row(row_id)
            lengths = np.array([len(row[name]) for name in ARRAY_TYPES], dtype=np.uint32)
            content = b"".join([lengths.tobytes(), *(row[name].tobytes() for name in ARRAY_TYPES)])
            sink.write({"__key__": f"{row_id:08d}", "row.zst": compress(content)})


def _web_row(sample: dict[str, Any]) -> Row:
    content = import_module("zstandard").ZstdDecompressor().decompress(sample["row.zst"])
    at = np.dtype(np.uint32).itemsize * len(ARRAY_TYPES)
    row: Row = {"row_id": int(sample["__key__"])}
    for (name, dtype), length in zip(ARRAY_TYPES.items(), np.frombuffer(content[:at], np.uint32).tolist(), strict=True):
        row[name] = np.frombuffer(content, dtype, length, at)
        at += row[name].nbytes
    return row


def _web_epochs(directory: Path, scratch: Path, num_workers: int = 0) -> Epochs:
    web = import_module("webdataset")
    files = sorted(map(str, directory.glob("*.tar")))
    rows = web.WebDataset(files, shardshuffle=len(files), seed=0).shuffle(_WEB_SHUFFLED_ROWS).map(_web_row)
    batches = rows.batched(BATCH_ROWS, collation_fn=ready)
    return _again_and_again(web.WebLoader(batches, batch_size=None, num_workers=num_workers))


def _write_datasets(directory: Path, cache: Cache) -> None:
    table = pa.Table.from_batches(_stored(cache))
    import_module("datasets").Dataset(table).save_to_disk(directory, num_shards=_NUM_FILES)


def _datasets_epochs(directory: Path, scratch: Path) -> Epochs:
    rows = import_module("datasets").load_from_disk(directory)
    for seed in itertools.count():
        yield _from_tables(rows.shuffle(seed=seed).with_format("arrow").iter(batch_size=BATCH_ROWS))


def _write_parquet(directory: Path, cache: Cache) -> None:
    directory.mkdir(parents=True)
    table = pa.Table.from_batches(_stored(cache))
    per_file = len(table) // _NUM_FILES
    for index in range(_NUM_FILES):
        path = directory / f"{index:05d}.parquet"
        part = table.slice(index * per_file, per_file)
        pq.write_table(part, path, compression="zstd", row_group_size=BATCH_ROWS)


def _parquet_epochs(directory: Path, scratch: Path) -> Epochs:
    files = sorted(map(str, directory.glob("*.parquet")))
    load = import_module("datasets").load_dataset
    rows = load("parquet", data_files=files, split="train", streaming=True)
    shuffled = rows.shuffle(seed=0, buffer_size=_PARQUET_SHUFFLED_ROWS).with_format("arrow")
    for epoch in itertools.count():
        shuffled.set_epoch(epoch)
        yield _from_tables(shuffled.iter(batch_size=BATCH_ROWS))


def _from_tables(tables: Iterable[pa.Table]) -> Iterator[BlockBatch]:
    for table in tables:
        (batch,) = table.combine_chunks().to_batches()
        yield block_batch(batch, tail_weight=_TAIL_WEIGHT, temperature=1.0, device=torch.device("cpu"))


def _peer(name: str, needs: str, write: Callable[[Path, Cache], None], epochs: Callable[..., Epochs]) -> Any:
    """Yield the format read in the training process, and the format read by two worker processes."""
    for suffix, settings in (("", {}), (", 2 workers", {"num_workers": 2})):
        yield StreamSystem(
            name=f"{name}{suffix}",
            folder=needs,
            needs=needs,
            write=write,
            epochs=functools.partial(epochs, **settings),
        )


OURS = StreamSystem(
    name="teachonce", folder="teachonce", needs="storage", write=_write_nothing, epochs=_our_epochs, is_peer=False
)
PEERS = (
    *_peer("mosaicml-streaming, zstd", "streaming", _write_mosaic, _mosaic_epochs),
    *_peer("litdata, zstd", "litdata", _write_lit, _lit_epochs),
    *_peer("webdataset, zstd", "webdataset", _write_web, _web_epochs),
    StreamSystem(
        name="datasets, Parquet zstd",
        folder="parquet",
        needs="datasets",
        write=_write_parquet,
        epochs=_parquet_epochs,
        is_peer=False,
    ),
    StreamSystem(
        name="datasets, Arrow",
        folder="arrow",
        needs="datasets",
        write=_write_datasets,
        epochs=_datasets_epochs,
        is_peer=False,
        is_compressed=False,
    ),
)
SYSTEMS = {system.name: system for system in (OURS, *PEERS)}
