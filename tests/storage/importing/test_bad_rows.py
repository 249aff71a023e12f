"""Bad sources: one line with file, row and position, exit code 2, and nothing written."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.cli import main
from storage.importing.errors import ImportRowError, ImportSourceError, MisalignedRowError
from tests.storage.importing.conftest import Import
from tests.storage.importing.dumps import MadeUpTeacher, table_row, vllm_row, write_lines, write_parquet

Row = dict[str, Any]
IDS = [17, 90, 33, 4, 121, 65, 200, 8]


def listed(own: int) -> dict[str, Any]:
    values = zip((own, 210, 211, 212), (-1.0, -1.5, -2.0, -3.0), (1, 2, 3, 4), strict=True)
    return {str(i): {"logprob": logprob, "rank": rank} for i, logprob, rank in values}


def entry(row: Row, position: int, place: int) -> dict[str, Any]:
    return list(row["prompt_logprobs"][position].values())[place]


def one_list_longer(row: Row) -> None:
    row["prompt_logprobs"].append(row["prompt_logprobs"][-1])


def one_list_shorter(row: Row) -> None:
    row["prompt_logprobs"].pop()


def first_null_dropped(row: Row) -> None:
    row["prompt_logprobs"] = [*row["prompt_logprobs"][1:], None]


def shifted_by_one(row: Row) -> None:
    row["prompt_logprobs"] = [None, *row["prompt_logprobs"][2:], row["prompt_logprobs"][1]]


def a_missing_position(row: Row) -> None:
    row["prompt_logprobs"][3] = None


def an_empty_position(row: Row) -> None:
    row["prompt_logprobs"][3] = {}


def an_id_outside(row: Row) -> None:
    row["prompt_logprobs"][2]["257"] = {"logprob": -9.0}


def a_token_outside(row: Row) -> None:
    row["prompt_token_ids"][0] = 999


def an_id_twice(row: Row) -> None:
    row["prompt_logprobs"][2]["0090"] = {"logprob": -9.0}
    row["prompt_logprobs"][2]["90"] = {"logprob": -9.0}


def mass_above_one(row: Row) -> None:
    for one in row["prompt_logprobs"][2].values():
        one["logprob"], one["rank"] = -0.5, 1


def a_positive_logprob(row: Row) -> None:
    entry(row, 4, 1)["logprob"], entry(row, 4, 0)["rank"] = 0.25, 2


def not_a_number(row: Row) -> None:
    entry(row, 4, 1)["logprob"] = math.nan


def an_infinite_label(row: Row) -> None:
    entry(row, 4, 0)["logprob"], entry(row, 4, 0)["rank"] = -math.inf, 300


def a_text_for_a_number(row: Row) -> None:
    entry(row, 4, 1)["logprob"] = "-0.5"


def a_rank_that_is_not_so(row: Row) -> None:
    entry(row, 4, 0)["logprob"], entry(row, 4, 0)["rank"] = -12.0, 1


def no_ids(row: Row) -> None:
    del row["prompt_token_ids"]


def no_targets(row: Row) -> None:
    row.clear()


MISALIGNED = {
    one_list_longer: "prompt_logprobs: 9 positions for 8 tokens, expected as many",
    one_list_shorter: "prompt_logprobs: 7 positions for 8 tokens, expected as many",
    first_null_dropped: "prompt_logprobs 0: has log-probabilities, expected null",
    shifted_by_one: r"position 1: does not list the token that stands there \(id 90\), as servers do; of 6 positions 0 "
    "list the token that they should be about, 0 the one before it, 6 the one after it",
    a_rank_that_is_not_so: "prompt_logprobs 4: id 121 has rank 1, but 3 of the listed ids are more probable",
    an_infinite_label: r"position 4: does not list the token that stands there \(id 121\)",
}
WRONG = {
    a_missing_position: "prompt_logprobs 3: is null, expected log-probabilities",
    an_empty_position: "position 3: lists nothing",
    an_id_outside: "position 2: id 257 with -9 nats is no id of the vocabulary of 257",
    a_token_outside: "token 0 is id 999, expected one below 257",
    an_id_twice: "prompt_logprobs 2: lists id 90 twice",
    mass_above_one: r"position 2: the probabilities of its 4 ids add up to 2\.42612, expected at most 1",
    a_positive_logprob: r"position 4: id \d+ with 0\.25 nats has that log-probability",
    not_a_number: r"position 4: id \d+ with nan nats has that log-probability",
    a_text_for_a_number: "prompt_logprobs 4: a log-probability is '-0.5', expected a number",
    no_ids: "has prompt_logprobs and no prompt_token_ids",
    no_targets: "has no tokens; expected prompt_logprobs or logprobs",
}


@pytest.mark.parametrize("damage", [*MISALIGNED, *WRONG], ids=lambda damage: damage.__name__)
def test_a_bad_row_of_vllm(imported: Import, tmp_path: Path, damage: Callable[[Row], None]) -> None:
    # Each list holds the label and three ids that are no token of the text.
    rows = [{"prompt_token_ids": list(IDS), "prompt_logprobs": [None, *map(listed, IDS[1:])]} for _ in range(3)]
    damage(rows[1])
    path = write_lines(tmp_path / "dump.jsonl", rows)
    error = MisalignedRowError if damage in MISALIGNED else ImportRowError
    with pytest.raises(
        error, match=rf"dump\.jsonl, line 2[:,] (?:.*)?{(MISALIGNED | WRONG)[damage]}.*nothing was written"
    ):
        imported(path, "topk-jsonl")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("content", "error", "says"),
    [
        (b"", ImportSourceError, r"dump\.jsonl: holds no text"),
        (b"\n \n", ImportSourceError, r"dump\.jsonl: holds no text"),
        (b'{"a": 1', ImportRowError, "line 1: is not one JSON object"),
        (b"\xff\xfe{}", ImportRowError, "line 1: is not one JSON object"),
        (b"[1]\n", ImportRowError, r"line 1: holds \[1\], expected an object"),
        (b'\n{"prompt_token_ids": [1, "2"]}', ImportRowError, "line 2: prompt_token_ids is .*, expected a list of ids"),
        (b'{"prompt_token_ids": [1, 2]}', ImportSourceError, "holds 1 texts, none of which has a target"),
        (b'{"prompt_token_ids": [1], "logprobs": {"x": 1}}', ImportRowError, "expected a list, content, or tokens"),
    ],
)
def test_a_file_that_holds_no_such_rows(
    imported: Import, tmp_path: Path, content: bytes, error: type[Exception], says: str
) -> None:
    path = tmp_path / "dump.jsonl"
    path.write_bytes(content)
    with pytest.raises(error, match=says):
        imported(path, "topk-jsonl")
    assert not (tmp_path / "cache").exists()


def same_rows(made_up: MadeUpTeacher) -> list[Row]:
    return [table_row(made_up, made_up.text(40, n), 12) for n in range(3)]


def test_lists_about_another_token_are_found_though_their_lengths_are_right(
    imported: Import, made_up: MadeUpTeacher, tmp_path: Path
) -> None:
    rows = same_rows(made_up)
    for name in ("ids", "logprobs"):
        rows[2][name] = [*rows[2][name][1:], rows[2][name][0]]
    path = write_parquet(tmp_path / "rows.parquet", rows)
    with pytest.raises(
        MisalignedRowError, match=r"rows\.parquet, row 2: the lists are one position early: of 38 positi"
    ):
        imported(path, "topk-parquet")
    assert not (tmp_path / "cache").exists()


def test_short_rows_that_are_shifted_are_found_together(
    imported: Import, made_up: MadeUpTeacher, tmp_path: Path
) -> None:
    rows = [table_row(made_up, made_up.text(8, n), 12) for n in range(60)]
    for row in rows:
        for name in ("ids", "logprobs"):
            row[name] = [row[name][-1], *row[name][:-1]]
    path = write_parquet(tmp_path / "rows.parquet", rows)
    with pytest.raises(
        MisalignedRowError, match=r"all rows: the lists are one position late: .*try the other --alignm"
    ):
        imported(path, "topk-parquet")
    assert not (tmp_path / "cache").exists()


def test_a_teacher_that_is_no_better_than_chance_is_not_taken_for_a_shifted_one(
    imported: Import, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    rows = [
        {
            "input_ids": rng.integers(0, 257, 200).tolist(),
            "ids": [rng.permutation(257)[:100].tolist() for _ in range(199)],
            "logprobs": [[-6.0] * 100] * 199,
        }
        for _ in range(20)
    ]
    assert imported(write_parquet(tmp_path / "rows.parquet", rows), "topk-parquet").num_rows("soft_targets", "train")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ids": [[1], [2]], "logprobs": [[-1.0], [-1.0]]}, "has lists at 2 positions for 5 tokens, expected 5 or 4"),
        ({"ids": [[1]] * 6, "logprobs": [[-1.0]] * 6}, "has lists at 6 positions for 5 tokens, expected 5 or 4"),
        ({"ids": [[1]] * 4, "logprobs": [[-1.0]] * 5}, "ids has 4 positions, logprobs has 5, expected as many"),
        ({"ids": [[1]] * 3 + [[1, 2]], "logprobs": [[-1.0]] * 4}, "position 3: 2 ids and 1 logprobs, expected as many"),
        ({"ids": [[1], None, [1], [1]], "logprobs": [[-1.0], None, [-1.0], [-1.0]]}, "position 1: lists nothing"),
        ({"ids": [[3, 3]] * 4, "logprobs": [[-1.0, -1.0]] * 4}, "position 0: id 3 with -1 nats is listed twice"),
        ({"ids": [[-3]] * 4, "logprobs": [[-1.0]] * 4}, "position 0: id -3 with -1 nats is no id of the vocabulary"),
        ({"ids": [[3]] * 4, "logprobs": [[None]] * 4}, "logprobs (holds a null|is .*expected a list of numbers)"),
        ({"ids": [1] * 4, "logprobs": [-1.0] * 4}, "ids is list.*, expected a list of numbers per position"),
        ({"input_ids": None, "ids": [[1]], "logprobs": [[-1.0]]}, "input_ids is .*null, expected numbers"),
    ],
)
def test_a_bad_row_of_a_table(imported: Import, tmp_path: Path, change: Row, says: str) -> None:
    row = {"input_ids": [1, 2, 3, 4, 5]} | change
    path = write_parquet(tmp_path / "rows.parquet", [row])
    with pytest.raises(ImportRowError, match=rf"rows\.parquet, row 0: {says}"):
        imported(path, "topk-parquet")
    assert not (tmp_path / "cache").exists()


def test_columns_and_files_that_are_not_there(imported: Import, made_up: MadeUpTeacher, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "rows.parquet", same_rows(made_up))
    with pytest.raises(ImportSourceError, match="has no column 'top_ids', but input_ids, ids, logprobs; name the colu"):
        imported(path, "topk-parquet", ids_column="top_ids")
    with pytest.raises(ImportSourceError, match=r"nowhere: no such file or directory"):
        imported(tmp_path / "nowhere", "topk-parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImportSourceError, match=r"empty: holds no file for --format topk-parquet, expected \.parquet"):
        imported(tmp_path / "empty", "topk-parquet")
    (tmp_path / "not.parquet").write_bytes(b"no parquet")
    with pytest.raises(ImportSourceError, match=r"not\.parquet: cannot be read"):
        imported(tmp_path / "not.parquet", "topk-parquet")


def test_the_command_says_it_in_one_line_and_exits_with_2(
    made_up: MadeUpTeacher,
    tokenizer_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    row = vllm_row(made_up, IDS, 3)
    one_list_shorter(row)
    path = write_lines(tmp_path / "dump.jsonl", [row])
    arguments = ["import", path, "--format", "topk-jsonl", "--tokenizer", tokenizer_dir, "--out", tmp_path / "cache"]
    monkeypatch.setattr(sys, "argv", ["teachonce-cache", *map(str, arguments), "--quiet"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        f"teachonce-cache: error: {path}, line 1: prompt_logprobs: 7 positions for 8 tokens, expected as many; nothing "
        "was written"
    ]
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("missing", ["tokenizer.json", "tokenizer_config.json"])
def test_a_directory_that_is_no_tokenizer(imported: Import, tokenizer_dir: Path, tmp_path: Path, missing: str) -> None:
    directory = tmp_path / "tokenizer"
    directory.mkdir()
    for name in {"tokenizer.json", "tokenizer_config.json"} - {missing}:
        (directory / name).write_bytes((tokenizer_dir / name).read_bytes())
    with pytest.raises(Exception, match=f"holds no {missing}, expected the directory of a tokenizer"):
        imported(write_lines(tmp_path / "dump.jsonl", [json.loads("{}")]), "topk-jsonl", tokenizer=directory)
