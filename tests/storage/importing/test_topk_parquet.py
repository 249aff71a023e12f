"""Parquet and Arrow with top-k lists: types of lists, names of columns, both alignments, masked labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from storage.importing.errors import ImportRowError
from tests.storage.importing.conftest import Import
from tests.storage.importing.dumps import MadeUpTeacher, table_row, write_parquet
from tests.storage.importing.truth import check_text, stored

TOP_K = 6


@pytest.fixture
def rows(made_up: MadeUpTeacher) -> list[dict[str, Any]]:
    return [table_row(made_up, made_up.text(5 + n % 3, n), TOP_K) for n in range(7)]


def check(cache: Any, teacher: MadeUpTeacher, rows: list[dict[str, Any]]) -> None:
    found = {tuple(text["ids"]): text for text in stored(cache)}
    assert len(found) == len(rows)
    for row in rows:
        check_text(found[tuple(row["input_ids"])], teacher, row["input_ids"], TOP_K, with_label=False)


@pytest.mark.parametrize(
    "types",
    [
        {},
        {"ids": pa.large_list(pa.large_list(pa.uint16())), "logprobs": pa.large_list(pa.large_list(pa.float64()))},
        {"ids": pa.list_(pa.list_(pa.int32(), TOP_K)), "logprobs": pa.list_(pa.list_(pa.float32(), TOP_K))},
    ],
    ids=["lists", "large lists", "lists of fixed size"],
)
def test_every_type_of_list(
    imported: Import, made_up: MadeUpTeacher, rows: list[dict[str, Any]], tmp_path: Path, types: dict[str, Any]
) -> None:
    check(imported(write_parquet(tmp_path / "rows.parquet", rows, **types), "topk-parquet"), made_up, rows)


@pytest.mark.parametrize("form", ["file", "stream"])
def test_both_forms_of_arrow(
    imported: Import, made_up: MadeUpTeacher, rows: list[dict[str, Any]], tmp_path: Path, form: str
) -> None:
    table = pa.Table.from_pylist(rows)
    new = {"file": pa.ipc.new_file, "stream": pa.ipc.new_stream}[form]
    with new(tmp_path / "rows.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    check(imported(tmp_path / "rows.arrow", "topk-parquet"), made_up, rows)


def test_columns_of_other_names(
    imported: Import, made_up: MadeUpTeacher, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    names = {"input_ids": "tokens", "ids": "token_ids", "logprobs": "top_values"}
    renamed = [{names[name]: value for name, value in row.items()} | {"other": "text"} for row in rows]
    flags = {f"{name}_column": names[name] for name in names}
    check(imported(write_parquet(tmp_path / "rows.parquet", renamed), "topk-parquet", **flags), made_up, rows)


def test_lists_for_every_token_of_which_the_last_is_about_none(
    imported: Import, made_up: MadeUpTeacher, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    longer = [row | {name: [*row[name], row[name][0]] for name in ("ids", "logprobs")} for row in rows]
    check(imported(write_parquet(tmp_path / "rows.parquet", longer), "topk-parquet"), made_up, rows)


@pytest.mark.parametrize("nothing", [None, []])
def test_lists_about_the_token_that_stands_there(
    imported: Import, made_up: MadeUpTeacher, rows: list[dict[str, Any]], tmp_path: Path, nothing: Any
) -> None:
    later = [row | {name: [nothing, *row[name]] for name in ("ids", "logprobs")} for row in rows]
    path = write_parquet(tmp_path / "rows.parquet", later)
    check(imported(path, "topk-parquet", alignment="same"), made_up, rows)
    with pytest.raises(ImportRowError, match="position 0: lists nothing"):
        imported(path, "topk-parquet", out=tmp_path / "next")
    first = [row | {name: [row[name][0], *row[name]] for name in ("ids", "logprobs")} for row in rows]
    with pytest.raises(ImportRowError, match=f"position 0: lists {TOP_K} ids, expected none with --alignment same"):
        imported(write_parquet(path, first), "topk-parquet", alignment="same", out=tmp_path / "same")


def test_entries_without_probability_are_part_of_the_tail(imported: Import, tmp_path: Path) -> None:
    row = {
        "input_ids": [1, 2, 3],
        "ids": [[5, 0, 0], [4, 2, 10**6]],
        "logprobs": [[np.log(0.5), -np.inf, -np.inf], [np.log(0.25), np.log(0.5), -np.inf]],
    }
    (found,) = stored(imported(write_parquet(tmp_path / "rows.parquet", [row]), "topk-parquet"))
    assert [set(target["head"]) for target in found["targets"]] == [{5}, {2, 4}]
    np.testing.assert_allclose([np.exp(target["tail"]) for target in found["targets"]], [0.5, 0.25], rtol=2e-3)


def test_masses_about_one(imported: Import, tmp_path: Path) -> None:
    row = {
        "input_ids": [1, 2, 3, 4],
        "ids": [[5, 6], [5, 6], list(range(257))],
        "logprobs": [np.log([0.6, 0.405]).tolist(), np.log([0.6, 0.4]).tolist(), [float(np.log(1 / 257))] * 257],
    }
    (found,) = stored(imported(write_parquet(tmp_path / "rows.parquet", [row]), "topk-parquet"))
    rounded, exact, whole = found["targets"]
    assert np.exp(list(rounded["head"].values())).sum() == pytest.approx(1, abs=1e-3)
    for target in (rounded, exact):
        assert target["tail"] == pytest.approx(-24 * np.log(2), rel=1e-3), "losses need a tail above 0"
    assert whole["tail"] == -np.inf, "there is nothing outside the whole vocabulary"
    with pytest.raises(ImportRowError, match=r"position 0: .* add up to 1\.005, expected at most 1"):
        imported(tmp_path / "rows.parquet", "topk-parquet", mass_tolerance=0.001, out=tmp_path / "strict")
