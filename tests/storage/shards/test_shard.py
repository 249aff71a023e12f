from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from storage import open_cache, verify_cache
from storage.errors import (
    CacheError,
    HashMismatchError,
    MissingFileError,
    RowError,
    ShardFormatError,
    TeachonceError,
)
from storage.reading.cache import Cache
from storage.records.identity import ShardKey, ShardRecord
from storage.rows.kinds import KINDS
from storage.shards.shard import Shard, batch_stats, check_file, write_shard

FIRST = {kind: f"{kind}/train-00000-of-0000{count}.arrow" for kind, count in zip(KINDS, (3, 2, 1), strict=True)}
SOFT = FIRST["soft_targets"]
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
INT64_WIDTH = (64).to_bytes(4, "little")

Batches = list[pa.RecordBatch]


def read_all(cache_dir: Path, kind: str = "soft_targets") -> Batches:
    return list(open_cache(cache_dir).record_batches(kind, "train"))


def only_problem(cache_dir: Path, path: str) -> CacheError:
    """The one thing that verification finds, which names the shard."""
    (problem,) = verify_cache(cache_dir).problems
    assert path in str(problem)
    return problem


def shard_batches(cache_dir: Path, path: str) -> Batches:
    with pa.OSFile(str(cache_dir / path)) as file:
        reader = pa.ipc.open_file(file)
        return [reader.get_batch(index) for index in range(reader.num_record_batches)]


def positions_of_interest(content: bytes) -> list[int]:
    """Forty positions spread over the file, its header, its footer and its last bytes."""
    spread = np.linspace(0, len(content) - 1, 40).astype(int).tolist()
    footer_length = int.from_bytes(content[-10:-6], "little")
    footer = len(content) - 10 - footer_length
    bodies = [at for at in range(len(content)) if content.startswith(ZSTD_MAGIC, at)][:3]
    return sorted(
        {*spread, *range(8), footer, footer + footer_length // 2, *bodies, *range(len(content) - 12, len(content))}
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_anywhere_is_found_by_verification_and_by_reading(small_cache: Path, kind: str) -> None:
    path = FIRST[kind]
    pristine = (small_cache / path).read_bytes()
    positions = positions_of_interest(pristine)
    assert len(positions) > 50
    for position in positions:
        damaged = bytearray(pristine)
        damaged[position] ^= 1 << position % 8
        (small_cache / path).write_bytes(damaged)
        assert isinstance(only_problem(small_cache, path), HashMismatchError), position
        with pytest.raises(HashMismatchError):
            read_all(small_cache, kind)
    (small_cache / path).write_bytes(pristine)
    assert verify_cache(small_cache).problems == ()


@pytest.mark.parametrize("kept", [0, 1, 8, 100, -10, -1])
def test_a_truncated_shard_is_found(small_cache: Path, kept: int) -> None:
    content = (small_cache / SOFT).read_bytes()
    (small_cache / SOFT).write_bytes(content[:kept])
    assert isinstance(only_problem(small_cache, SOFT), HashMismatchError)
    with pytest.raises(HashMismatchError):
        read_all(small_cache)


def test_bytes_after_the_end_are_found(small_cache: Path) -> None:
    with (small_cache / SOFT).open("ab") as file:
        file.write(b"\0")
    assert isinstance(only_problem(small_cache, SOFT), HashMismatchError)


@pytest.mark.parametrize("put_a_directory", [False, True])
def test_a_missing_shard_is_found(small_cache: Path, put_a_directory: bool) -> None:
    (small_cache / SOFT).unlink()
    if put_a_directory:
        (small_cache / SOFT).mkdir()
    assert isinstance(only_problem(small_cache, SOFT), MissingFileError)
    with pytest.raises(MissingFileError):
        read_all(small_cache)


def test_two_shards_exchanged_are_found(small_cache: Path) -> None:
    other = SOFT.replace("00000", "00001")
    (small_cache / SOFT).rename(small_cache / "aside")
    (small_cache / other).rename(small_cache / SOFT)
    (small_cache / "aside").rename(small_cache / other)
    assert [type(problem) for problem in verify_cache(small_cache).problems] == [HashMismatchError] * 2


def as_bytes(batches: Batches, new: Callable[..., Any] = pa.ipc.new_file, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with new(sink, batches[0].schema, **options) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return bytes(sink.getvalue())


NOT_ARROW: dict[str, Callable[[bytes, Batches], bytes]] = {
    "header alone": lambda content, batches: content[:8],
    "noise": lambda content, batches: np.random.default_rng(0).bytes(len(content)),
    "zeros": lambda content, batches: bytes(len(content)),
    "magic alone": lambda content, batches: b"ARROW1\0\0" + bytes(200) + b"ARROW1",
    "truncated": lambda content, batches: content[:-20],
    "arrow stream": lambda content, batches: as_bytes(batches, pa.ipc.new_stream),
    "footer length of 2 GB": lambda content, batches: content[:-10] + (2**31 - 1).to_bytes(4, "little") + b"ARROW1",
    "negative footer length": lambda content, batches: content[:-10] + b"\xff\xff\xff\xff" + b"ARROW1",
    "buffer that claims a petabyte": lambda content, batches: claim(content, 2**50),
    "buffer that claims less than nothing": lambda content, batches: claim(content, 2**63 + 5),
    "buffer that claims a byte too few": lambda content, batches: claim(content, 1),
    "column name that is not text": lambda content, batches: content.replace(b"entropy", b"entrop\xff"),
    "integers of 128 bits": lambda content, batches: content.replace(INT64_WIDTH, (128).to_bytes(4, "little")),
}


def claim(content: bytes, num_bytes: int) -> bytes:
    """A shard whose first compressed buffer says that it holds `num_bytes`."""
    at = content.index(ZSTD_MAGIC)
    return content[: at - 8] + num_bytes.to_bytes(8, "little") + content[at:]


@pytest.mark.parametrize("case", NOT_ARROW)
def test_a_shard_with_the_right_hash_that_is_no_arrow_file_is_refused(
    small_cache: Path, forge: SimpleNamespace, case: str
) -> None:
    content = (small_cache / SOFT).read_bytes()
    changed = NOT_ARROW[case](content, shard_batches(small_cache, SOFT))
    assert changed != content
    (small_cache / SOFT).write_bytes(changed)
    forge.accept_shard(small_cache, SOFT)
    assert isinstance(only_problem(small_cache, SOFT), ShardFormatError)
    with pytest.raises(ShardFormatError):
        read_all(small_cache)


def without_first(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch.select(batch.schema.names[1:])


def cast(batch: pa.RecordBatch, name: str, column_type: pa.DataType, *, nullable: bool = False) -> pa.RecordBatch:
    at = batch.schema.get_field_index(name)
    field = pa.field(name, column_type, nullable=nullable)
    return batch.set_column(at, field, batch.column(name).cast(column_type))


OTHER_SCHEMAS: dict[str, Callable[[pa.RecordBatch], pa.RecordBatch]] = {
    "a column missing": without_first,
    "a column too many": lambda batch: batch.append_column("extra", batch.column("row_id")),
    "columns in another order": lambda batch: batch.select(batch.schema.names[::-1]),
    "a column renamed": lambda batch: batch.rename_columns(["ROW_ID", *batch.schema.names[1:]]),
    "row ids unsigned": lambda batch: cast(batch, "row_id", pa.uint64()),
    "row ids nullable": lambda batch: cast(batch, "row_id", pa.int64(), nullable=True),
    "ids signed": lambda batch: cast(batch, "ids", pa.large_list(pa.field("item", pa.int16(), nullable=False))),
    "ids in short lists": lambda batch: cast(batch, "ids", pa.list_(pa.field("item", pa.uint16(), nullable=False))),
    "ids that may be null": lambda batch: cast(batch, "ids", pa.large_list(pa.uint16())),
    "logprobs in float32": lambda batch: cast(
        batch, "logprobs", pa.large_list(pa.field("item", pa.float32(), nullable=False))
    ),
}


@pytest.mark.parametrize("case", OTHER_SCHEMAS)
def test_another_schema_is_refused(small_cache: Path, forge: SimpleNamespace, case: str) -> None:
    batches = [OTHER_SCHEMAS[case](batch) for batch in shard_batches(small_cache, SOFT)]
    forge.replace_shard(small_cache, SOFT, batches[0].schema, batches)
    problem = only_problem(small_cache, SOFT)
    assert isinstance(problem, ShardFormatError)
    assert "columns" in str(problem)
    with pytest.raises(ShardFormatError):
        read_all(small_cache)


def test_columns_of_one_name_are_refused(small_cache: Path, forge: SimpleNamespace) -> None:
    """Two temperatures that share a column name, in the identity and in every shard alike."""
    forge.identity(small_cache, lambda content: content.update(temperatures=[1.0, 2.0, 2.0]))
    for path in sorted(str(path.relative_to(small_cache)) for path in (small_cache / "soft_targets").iterdir()):
        batches = shard_batches(small_cache, path)
        doubled = [
            batch.append_column(batch.schema.field(batch.num_columns - 1), batch.columns[-1]) for batch in batches
        ]
        forge.replace_shard(small_cache, path, doubled[0].schema, doubled)
    with pytest.raises(CacheError):
        read_all(small_cache)


OTHER_LAYOUTS: dict[str, Callable[[Batches], Batches]] = {
    "no batches": lambda batches: [],
    "a batch too few": lambda batches: batches[:1],
    "a batch too many": lambda batches: [*batches, batches[-1]],
    "one batch of all rows": lambda batches: [joined(batches)],
    "rows cut elsewhere": lambda batches: [batches[0].slice(0, 3), joined(batches).slice(3)],
    "a row too few": lambda batches: [batches[0], batches[1].slice(0, 3)],
    "an empty batch": lambda batches: [batches[0], batches[1].slice(0, 0)],
}


def joined(batches: Batches) -> pa.RecordBatch:
    return pa.Table.from_batches(batches).combine_chunks().to_batches()[0]


@pytest.mark.parametrize("case", OTHER_LAYOUTS)
def test_another_cut_into_batches_is_refused(small_cache: Path, forge: SimpleNamespace, case: str) -> None:
    batches = shard_batches(small_cache, SOFT)
    forge.replace_shard(small_cache, SOFT, batches[0].schema, OTHER_LAYOUTS[case](batches))
    problem = only_problem(small_cache, SOFT)
    assert isinstance(problem, ShardFormatError)
    assert "expected" in str(problem)
    with pytest.raises(ShardFormatError):
        read_all(small_cache)


@pytest.mark.parametrize("num_rows", [0, 3, 4, 5, 7, 9])
def test_a_record_with_another_row_count_is_refused(small_cache: Path, forge: SimpleNamespace, num_rows: int) -> None:
    try:
        forge.shard_record(small_cache, SOFT, num_rows=num_rows)
        problem: Exception = only_problem(small_cache, SOFT)
    except TeachonceError as error:
        problem = error
    assert isinstance(problem, CacheError)


@pytest.mark.parametrize("shift", [-1, 1, 100])
def test_rows_from_another_place_are_refused(small_cache: Path, forge: SimpleNamespace, shift: int) -> None:
    batches = [
        forge.column(batch, "row_id", lambda ids: ids.__setitem__(slice(None), [i + shift for i in ids]))
        for batch in shard_batches(small_cache, SOFT)
    ]
    forge.replace_shard(small_cache, SOFT, batches[0].schema, batches)
    problem = only_problem(small_cache, SOFT)
    assert isinstance(problem, RowError)
    assert problem.column == "row_id"


def test_rows_given_twice_under_two_names_are_refused(small_cache: Path, forge: SimpleNamespace) -> None:
    other = SOFT.replace("00000", "00001")
    batches = shard_batches(small_cache, SOFT)
    batches[1] = batches[1].slice(0, 3)
    forge.replace_shard(small_cache, other, batches[0].schema, batches)
    problem = only_problem(small_cache, other)
    assert isinstance(problem, RowError)
    assert problem.column == "row_id"


def test_a_broken_row_names_file_batch_and_column(small_cache: Path, forge: SimpleNamespace) -> None:
    batches = shard_batches(small_cache, SOFT)
    batches[1] = forge.column(batches[1], "input_ids", lambda rows: rows[2].__setitem__(0, 50))
    forge.replace_shard(small_cache, SOFT, batches[0].schema, batches)
    problem = only_problem(small_cache, SOFT)
    assert isinstance(problem, RowError)
    assert problem.column == "input_ids"
    assert problem.where == f"{small_cache / SOFT}, record batch 1"
    with pytest.raises(RowError):
        read_all(small_cache)


@pytest.mark.parametrize("name", ["num_tokens", "num_targets", "entropy_sum_nats", "label_nll_sum_nats"])
def test_counts_that_the_rows_belie_are_found(small_cache: Path, forge: SimpleNamespace, name: str) -> None:
    record = open_cache(small_cache).manifest.shards[0]
    forge.shard_record(small_cache, SOFT, **{name: getattr(record, name) + 1})
    problem = only_problem(small_cache, SOFT)
    assert isinstance(problem, RowError)
    assert problem.column == "counts"


def list_with_null(column: pa.Array) -> pa.Array:
    """The same list column with its first element null, though the type says that none is."""
    values = column.flatten()
    mask = np.zeros(len(values), dtype=bool)
    mask[0] = True
    holey = pa.array(values.to_pylist(), type=values.type, mask=mask)
    if pa.types.is_large_list(column.type):
        return pa.LargeListArray.from_arrays(column.offsets, holey, type=column.type)
    return pa.FixedSizeListArray.from_arrays(holey, type=column.type)


NULLABLE = [
    *(("soft_targets", name) for name in ("input_ids", "segment_lengths", "head_size", "ids", "logprobs", "entropy")),
    *(("samples", name) for name in ("prompt_ids", "completion_ids", "completion_logprobs")),
    *(("beams", name) for name in ("candidate_lengths", "candidate_ids", "scores", "finish_reasons", "texts")),
]


@pytest.mark.parametrize(("kind", "name"), NULLABLE)
def test_a_null_inside_a_list_is_refused(small_cache: Path, forge: SimpleNamespace, kind: str, name: str) -> None:
    path = FIRST[kind]
    batches = shard_batches(small_cache, path)
    arrays = {field.name: batches[0].column(field.name) for field in batches[0].schema}
    arrays[name] = list_with_null(arrays[name])
    batches[0] = pa.RecordBatch.from_arrays(list(arrays.values()), schema=batches[0].schema)
    forge.replace_shard(small_cache, path, batches[0].schema, batches)
    assert isinstance(only_problem(small_cache, path), ShardFormatError | RowError)
    with pytest.raises((ShardFormatError, RowError)):
        read_all(small_cache, kind)


@pytest.mark.parametrize(
    ("kind", "name"), [("soft_targets", "ids"), ("soft_targets", "logprobs"), ("samples", "completion_ids")]
)
def test_a_null_behind_the_last_list_is_refused(small_cache: Path, kind: str, name: str) -> None:
    """Arrow's writer leaves out what belongs to no list; a file made by hand may hold it."""
    cache = open_cache(small_cache)
    shard = cache.open_shard(cache.shards(kind, "train")[0])
    batch = shard.read_batch(0)
    column = batch.column(name)
    values = pa.array([*column.values.to_pylist(), None], type=column.type.value_type)
    longer = pa.LargeListArray.from_arrays(column.offsets, values, type=column.type)
    batch = batch.set_column(batch.schema.get_field_index(name), batch.schema.field(name), longer)
    with pytest.raises(ShardFormatError, match="holds nulls"):
        shard.check(batch, 0)


@pytest.mark.parametrize(("kind", "name"), [("soft_targets", "row_id"), ("samples", "text"), ("samples", "seed")])
def test_a_null_in_a_column_is_refused(small_cache: Path, forge: SimpleNamespace, kind: str, name: str) -> None:
    path = FIRST[kind]
    batches = shard_batches(small_cache, path)
    batches[0] = forge.column(batches[0], name, lambda values: values.__setitem__(0, None))
    forge.replace_shard(small_cache, path, batches[0].schema, batches)
    assert isinstance(only_problem(small_cache, path), ShardFormatError)


def with_broken_text(column: pa.Array) -> pa.Array:
    """The same texts with a byte that no UTF-8 holds in the place of the first."""
    buffers = column.buffers()
    data = bytearray(buffers[2].to_pybytes())
    data[0] = 0xFF
    return pa.Array.from_buffers(column.type, len(column), [*buffers[:2], pa.py_buffer(bytes(data))])


def test_text_that_is_not_utf8_is_refused(small_cache: Path, forge: SimpleNamespace) -> None:
    path = FIRST["samples"]
    batches = shard_batches(small_cache, path)
    arrays = {field.name: batches[0].column(field.name) for field in batches[0].schema}
    arrays["text"] = with_broken_text(arrays["text"])
    batches[0] = pa.RecordBatch.from_arrays(list(arrays.values()), schema=batches[0].schema)
    forge.replace_shard(small_cache, path, batches[0].schema, batches)
    assert isinstance(only_problem(small_cache, path), ShardFormatError)


def read_shard(cache: Cache, record: ShardRecord) -> None:
    shard = Shard(check_file(cache.path, record), cache.identity, record)
    for index in range(shard.num_record_batches):
        batch_stats(shard.read_batch(index), record.key.kind)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_in_a_shard_with_the_right_hash_raises_nothing_but_our_errors(small_cache: Path, kind: str) -> None:
    cache = open_cache(small_cache)
    record = cache.manifest.shards_of(kind, "train")[0]
    pristine = (small_cache / record.path).read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        noisy = bytearray(pristine)
        for position in rng.integers(8, len(noisy) - 8, size=rng.integers(1, 4)).tolist():
            noisy[position] = int(rng.choice([0x00, 0x01, 0x7F, 0xFF, noisy[position] ^ 0x10]))
        (small_cache / record.path).write_bytes(noisy)
        accepted = dataclasses.replace(record, sha256=hashlib.sha256(noisy).hexdigest())
        try:
            read_shard(cache, accepted)
        except TeachonceError:
            refused += 1
    assert refused > 200


@pytest.mark.parametrize("kind", KINDS)
def test_a_written_shard_is_recorded_as_it_is(tmp_path: Path, make: SimpleNamespace, kind: str) -> None:
    identity = make.identity()
    key = ShardKey(kind=kind, split="train", index=1, num_shards=2)
    batches = [make.batch(kind, 4, 10, identity), make.batch(kind, 2, 14, identity)]
    record = write_shard(tmp_path, identity, key, 10, iter(batches))
    content = (tmp_path / key.path).read_bytes()
    assert (record.path, record.first_row_id, record.num_rows) == (key.path, 10, 6)
    assert (record.shard_bytes, record.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert record.key == key
    shard = Shard(check_file(tmp_path, record), identity, record)
    assert [shard.read_batch(index).equals(batch) for index, batch in enumerate(batches)] == [True, True]
    again = write_shard(tmp_path / "again", identity, key, 10, batches)
    assert again == record


REFUSED: dict[str, Callable[[Callable[[int], pa.RecordBatch], SimpleNamespace], Batches]] = {
    "a broken rule in the second batch": lambda rows_from, forge: [
        rows_from(10),
        forge.column(rows_from(14), "ids", lambda rows: rows[0].__setitem__(0, 999)),
    ],
    "a gap between batches": lambda rows_from, forge: [rows_from(10), rows_from(15)],
    "a batch twice": lambda rows_from, forge: [rows_from(10), rows_from(10)],
    "batches exchanged": lambda rows_from, forge: [rows_from(14), rows_from(10)],
    "rows that begin elsewhere": lambda rows_from, forge: [rows_from(14)],
    "a short batch before the last": lambda rows_from, forge: [rows_from(10).slice(0, 3), rows_from(13)],
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_reading_would_refuse_is_not_written(
    tmp_path: Path, make: SimpleNamespace, forge: SimpleNamespace, case: str
) -> None:
    identity = make.identity()
    batches = REFUSED[case](lambda first: make.batch("soft_targets", 4, first, identity), forge)
    key = ShardKey(kind="soft_targets", split="train", index=0, num_shards=1)
    with pytest.raises(CacheError):
        write_shard(tmp_path, identity, key, 10, batches)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_an_exception_of_the_producer_publishes_nothing_and_keeps_its_class(
    tmp_path: Path, make: SimpleNamespace
) -> None:
    identity = make.identity()

    def batches() -> Any:
        yield make.batch("samples", 4, 0, identity)
        raise RuntimeError("the teacher fell over")

    key = ShardKey(kind="samples", split="train", index=0, num_shards=1)
    with pytest.raises(RuntimeError, match="fell over"):
        write_shard(tmp_path, identity, key, 0, batches())
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
