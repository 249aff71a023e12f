"""Shards are plain Arrow: pyarrow and datasets read them without us."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest

from storage import open_cache
from storage.reading.cache import Cache
from storage.records.identity import SPLITS
from storage.rows.kinds import KINDS


def stored(cache: Cache, kind: str, split: str) -> pa.Table:
    return pa.Table.from_batches(cache.record_batches(kind, split))


@pytest.mark.parametrize("kind", KINDS)
def test_pyarrow_alone_reads_every_shard(cache: Cache, kind: str) -> None:
    tables = []
    for path in sorted((cache.path / kind).glob("train-*.arrow")):
        with pa.memory_map(str(path)) as file:
            tables.append(pa.ipc.open_file(file).read_all())
    assert pa.concat_tables(tables).equals(stored(cache, kind, "train"))


def test_buffers_are_compressed(small_cache: Path, make: SimpleNamespace) -> None:
    batch = make.batch("soft_targets", 4, 0, make.identity())
    path = small_cache / "soft_targets" / "train-00000-of-00003.arrow"
    assert path.read_bytes().count(b"\x28\xb5\x2f\xfd") > batch.num_columns


@pytest.mark.parametrize("kind", KINDS)
def test_no_column_is_nested_twice_nullable_or_a_dictionary(cache: Cache, kind: str) -> None:
    for field in cache.identity.schema(kind):
        assert not field.nullable
        if isinstance(field.type, pa.LargeListType | pa.FixedSizeListType):
            assert not field.type.value_field.nullable
            assert not pa.types.is_nested(field.type.value_type)
        else:
            assert not pa.types.is_nested(field.type)
        assert not pa.types.is_dictionary(field.type)


@pytest.fixture(scope="module")
def _offline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
        datasets.disable_progress_bars()
        yield
        datasets.enable_progress_bars()


@pytest.mark.usefixtures("_offline")
@pytest.mark.parametrize("kind", KINDS)
def test_datasets_loads_each_kind_with_equal_values(cache: Cache, tmp_path: Path, kind: str) -> None:
    loaded = datasets.load_dataset(str(cache.path), kind, cache_dir=str(tmp_path))
    assert set(loaded) == set(SPLITS)
    for split in SPLITS:
        expected = stored(cache, kind, split)
        assert loaded[split].column_names == expected.column_names
        assert loaded[split].with_format(None).to_list() == expected.to_pylist()


@pytest.mark.usefixtures("_offline")
@pytest.mark.parametrize("name", ["{} (1).arrow", "Copy of {}.arrow", "{}.arrow.bak", ".tmp-0123-{}.arrow"])
def test_datasets_reads_no_copy_of_a_shard(small_cache: Path, tmp_path: Path, name: str) -> None:
    shard = small_cache / "samples" / "train-00000-of-00002.arrow"
    shutil.copy(shard, shard.with_name(name.format(shard.stem)))
    loaded = datasets.load_dataset(str(small_cache), "samples", cache_dir=str(tmp_path / "hf"))
    assert loaded["train"]["row_id"] == list(range(6))


@pytest.mark.usefixtures("_offline")
def test_datasets_finds_the_kinds_that_the_card_names(small_cache: Path) -> None:
    assert sorted(datasets.get_dataset_config_names(str(small_cache))) == sorted(KINDS)
    loaded = datasets.load_dataset(str(small_cache), "samples", cache_dir=str(small_cache.parent / "hf"))
    assert set(loaded) == {"train"}
    assert loaded["train"]["text"] == stored(open_cache(small_cache), "samples", "train")["text"].to_pylist()


@pytest.mark.usefixtures("_offline")
def test_a_viewer_sees_the_columns_before_it_reads_a_row(cache: Cache, tmp_path: Path) -> None:
    """The hub's viewer asks `datasets` for the features, which come from the schema of the first shard."""
    for kind in KINDS:
        stream = datasets.load_dataset(str(cache.path), kind, split="train", streaming=True, cache_dir=str(tmp_path))
        features = datasets.Features.from_arrow_schema(cache.identity.schema(kind))
        assert stream._resolve_features().features == features


def test_polars_reads_a_shard(cache: Cache) -> None:
    polars = pytest.importorskip("polars")
    record = cache.shards("soft_targets", "train")[0]
    frame = polars.read_ipc(cache.path / record.path)
    table = stored(cache.restricted_to([record.path]), "soft_targets", "train")
    assert frame.columns == table.column_names
    assert frame["ids"].to_list() == table["ids"].to_pylist()
    mean = frame.select(polars.col("entropy").arr.explode().cast(polars.Float64).mean()).item()
    assert mean == pytest.approx(np.array(table["entropy"].to_pylist()).mean(), rel=1e-6)


def test_duckdb_reads_the_shards(cache: Cache) -> None:
    """DuckDB has no 16-bit floats, so they are widened on the way."""
    duckdb = pytest.importorskip("duckdb")
    paths = [cache.path / shard.path for shard in cache.shards("soft_targets", "train")]
    table = pa.concat_tables(pa.ipc.open_file(pa.memory_map(str(path))).read_all() for path in paths)
    wide = pa.schema([field.with_type(widened(field.type)) for field in table.schema])
    rows = table.cast(wide)  # noqa: F841  DuckDB finds it by its name
    ((count, longest, entropy),) = duckdb.sql(
        "select count(*), max(len(ids)), avg(list_aggregate(entropy::float[], 'avg')) from rows"
    ).fetchall()
    expected = stored(cache, "soft_targets", "train")
    assert (count, longest) == (len(expected), max(map(len, expected["ids"].to_pylist())))
    assert entropy == pytest.approx(np.array(expected["entropy"].to_pylist()).mean(), rel=1e-5)


def widened(column_type: pa.DataType) -> pa.DataType:
    """The type of a column with float32 in place of float16."""
    if getattr(column_type, "value_type", None) != pa.float16():
        return column_type
    item = column_type.value_field.with_type(pa.float32())
    return pa.list_(item, column_type.list_size) if pa.types.is_fixed_size_list(column_type) else pa.large_list(item)
