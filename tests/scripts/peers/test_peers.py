"""The comparison judges what it should: on hand-made answers, on our own format, and on peers where they are there."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter

import pytest

from scripts.peers import trials
from scripts.peers.comparison import SYSTEMS, Column, CompareConfig, compare
from scripts.peers.report import report
from scripts.peers.worker import Answer
from scripts.support.rows import OTHER_COLUMNS, fingerprint, make_row
from scripts.support.system import System

BY_NAME = {system.name: system for system in SYSTEMS}
FEW = CompareConfig(flips=8, kills=1, seed=3)
TRUTH = Counter(["a", "b", "c"])


def answer(ending: str, rows: str = "", error: str = "", has_logged_error: bool = False) -> Answer:
    return Answer(ending=ending, seconds=1.0, rows=list(rows), error=error, has_logged_error=has_logged_error)


@pytest.mark.parametrize(
    ("given", "outcome"),
    [
        (answer("done", "cab"), trials.RIGHT),
        (answer("done", "ca"), trials.MISSING),
        (answer("done", "ca", has_logged_error=True), trials.LOGGED),
        (answer("done", "cabb"), trials.REPEATED),
        (answer("done", "cax"), trials.WRONG),
        (answer("done", "cabx"), trials.WRONG),
        (answer("error", "ca", "HashMismatchError: /d/shard-1: damaged"), trials.NAMED),
        (answer("error", "", "KeyError: 'x'"), trials.OTHER_ERROR),
        (answer("error", "cx", "HashMismatchError: /d/shard-1: damaged"), trials.LATE_ERROR),
        (answer("died"), trials.DIED),
        (answer("timeout"), trials.NO_ANSWER),
    ],
)
def test_answers_are_judged_by_their_rows(given: Answer, outcome: str) -> None:
    assert trials.judge(given, TRUTH, "shard-1") == outcome


def test_a_fingerprint_changes_with_every_array_and_length() -> None:
    row = make_row(0, 5)
    changed = [row | {"row_id": 6}]
    for name in row.keys() - {"row_id"}:
        other = row[name].copy()
        other.view("uint8")[-1] ^= 1
        changed += [row | {name: other}, row | {name: row[name][:-1]}]
    assert fingerprint(row) == fingerprint({name: row[name] for name in reversed(row)})
    assert len({fingerprint(r) for r in (row, *changed)} - {OTHER_COLUMNS}) == 1 + len(changed)


def test_a_row_of_other_columns_or_types_is_not_taken_for_wrong_values() -> None:
    row = make_row(0, 5)
    damaged = [row | {"idr": 1}, {k: v for k, v in row.items() if k != "ids"}, row | {"ids": row["ids"].view("int16")}]
    assert [fingerprint(r) for r in damaged] == [OTHER_COLUMNS] * 3
    other = Answer(ending="done", seconds=1.0, rows=["a", OTHER_COLUMNS, "b"], error="", has_logged_error=False)
    assert trials.judge(other, TRUTH, "shard-1") == trials.OTHER
    worse = Answer(ending="done", seconds=1.0, rows=["x", OTHER_COLUMNS, "b"], error="", has_logged_error=False)
    assert trials.judge(worse, TRUTH, "shard-1") == trials.WRONG


def test_ours_names_every_damaged_file_and_goes_on_after_a_kill() -> None:
    column = compare(BY_NAME["teachonce, verified"], FEW)
    assert column.data_flips == {trials.NAMED: 6}
    assert column.index_flips == {trials.NAMED: 2}
    assert set(column.kills) <= {trials.REFUSED, trials.RIGHT, trials.NOT_KILLED}
    assert set(column.reruns) <= {trials.FINISHED}
    assert column.kills.total() == 1


@pytest.mark.parametrize("system", [system for system in SYSTEMS if system.is_peer], ids=lambda system: system.name)
def test_a_peer_gets_every_trial_or_an_empty_column(system: System) -> None:
    column = compare(system, CompareConfig(flips=4, kills=1, peers_python=sys.executable))
    if importlib.util.find_spec(system.needs[0]) is None:
        assert column.versions is None
        assert f"{system.name}: not installed" in report([column])
        pytest.skip(f"{system.needs[0]} is not installed")
    assert column.data_flips.total() + column.index_flips.total() == 4
    assert column.kills.total() == 1


def test_the_report_has_a_cell_for_every_system_and_a_row_for_every_outcome_seen() -> None:
    first, second = SYSTEMS[:2]
    columns = [
        Column(system=first, versions={"numpy": "2"}, data_flips=Counter({trials.NAMED: 3})),
        Column(system=second, versions=None, missing="ModuleNotFoundError: no"),
    ]
    text = report(columns)
    assert f"| {trials.NAMED} | 3 |  |" in text
    assert trials.WRONG not in text
    assert f"- {second.name}: not installed (ModuleNotFoundError: no)" in text
