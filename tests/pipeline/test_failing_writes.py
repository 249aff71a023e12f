"""Writes that the operating system refuses: one error, nothing half published, and a rerun with the same bytes.

Real limits, met by the command itself, are in tests/scripts/faults/test_soak.py.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from pipeline import BeamsConfig, PrecomputeConfig, SamplesConfig, precompute
from scripts.faults.bench import difference, snapshot
from scripts.faults.kills import chosen_moments
from scripts.faults.steps import Moment, observed_steps, recorded_moments
from scripts.faults.writes import ERRORS, can_fail, problem_of_remains, refusing
from storage.errors import WriteRefusedError

NUM_FAULTS = 20


@pytest.fixture(scope="module")
def configure(helpers: ModuleType, teacher_dir: Path, text_file: Path) -> Callable[[Path], PrecomputeConfig]:
    def configure(out: Path) -> PrecomputeConfig:
        return helpers.tiny_config(
            teacher_dir, text_file, out, max_tokens=1500, shard_tokens=600, document_separator="\\n",
            samples=SamplesConfig(num_prompts=6, prompt_tokens=5, max_new_tokens=3),
            beams=BeamsConfig(num_prompts=6, prompt_tokens=5, max_new_tokens=2),
        )  # fmt: skip

    return configure


@pytest.fixture(scope="module")
def undisturbed(
    configure: Callable[[Path], PrecomputeConfig], tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Moment], dict[str, str]]:
    """Every moment of a run, and what it leaves."""
    out = tmp_path_factory.mktemp("undisturbed") / "cache"
    moments = recorded_moments(out, lambda: precompute(configure(out)))
    return moments, snapshot(out)


def test_every_kind_of_step_is_seen(undisturbed: tuple[list[Moment], dict[str, str]]) -> None:
    moments, files = undisturbed
    published = {"plan": 1, "card": 1, "manifest": 1, "tokenizer": 2}
    published |= {"shard": sum(name.endswith(".arrow") for name in files)}
    published |= {"commit record": published["shard"]}
    for subject, number in published.items():
        for action in ("open", "fsync", "directory fsync"):
            seen = [m for m in moments if m == Moment(action=action, when="after", subject=subject)]
            assert len(seen) == number, (subject, action)
        assert {m.when for m in moments if (m.subject, m.action) == (subject, "write")} == {
            "before", "halfway through", "after",
        }  # fmt: skip
        assert any(m.action in ("rename", "link") and m.subject == subject for m in moments)
    assert {"mkdir", "remove", "write", "rename"} <= {m.action for m in moments if m.subject == "work files"}


def test_a_refused_step_is_one_error_and_a_rerun_ends_with_the_same_bytes(
    undisturbed: tuple[list[Moment], dict[str, str]], configure: Callable[[Path], PrecomputeConfig], tmp_path: Path
) -> None:
    moments, expected = undisturbed
    fallible = [index for index, moment in enumerate(moments) if can_fail(moment)]
    num_refused = 0
    chosen = chosen_moments([moments[index] for index in fallible], NUM_FAULTS, random.Random(0))
    for number, index in enumerate(fallible[position] for position in chosen):
        moment, error = moments[index], ERRORS[number % len(ERRORS)]
        out = tmp_path / str(number)
        refused = None
        with observed_steps(out, refusing(index, error)):
            try:
                precompute(configure(out))
            except WriteRefusedError as caught:
                refused = str(caught)
        if refused is not None:  # a directory that cannot be made may be there, for one
            num_refused += 1
            assert os.strerror(error) in refused
            assert "\n" not in refused
            assert problem_of_remains(out, expected, may_be_finished=moment.subject == "manifest") is None, str(moment)
        precompute(configure(out))
        assert difference(snapshot(out), expected) is None, str(moment)
    assert num_refused >= NUM_FAULTS - 4


def test_a_refusal_halfway_leaves_half_and_a_full_disk_stays_full(tmp_path: Path) -> None:
    """What is injected is what a disk does."""
    path = tmp_path / "file"

    def write() -> None:
        with path.open("wb") as file:
            file.write(b"12345678")

    moments = recorded_moments(tmp_path, write)
    assert [(m.when, m.action) for m in moments] == [
        ("before", "open"), ("after", "open"), ("before", "write"), ("halfway through", "write"), ("after", "write"),
    ]  # fmt: skip
    for error, still_refused in ((errno.EIO, False), (errno.ENOSPC, True)):
        with observed_steps(tmp_path, refusing(3, error)):
            with pytest.raises(OSError, match=os.strerror(error)):
                write()
            if still_refused:
                with pytest.raises(OSError, match=os.strerror(error)):
                    write()
                assert path.read_bytes() == b"1234"
            else:
                assert path.read_bytes().startswith(b"1234")
                write()
                assert path.read_bytes() == b"12345678"
