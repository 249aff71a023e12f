"""The log of a run: a line a step, cut back to the checkpoint when the run resumes."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from storage.errors import WriteRefusedError
from student.training.run_log import RunLog, metrics_lines, read_metrics


def test_the_log_drops_lines_after_the_checkpoint_and_half_a_line(tmp_path: Path) -> None:
    lines = [{"step": 1, "a": 1}, {"step": 2, "a": 2}, {"step": 2, "validation": {}}, {"step": 3, "a": 3}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 4, "a"')
    assert read_metrics(tmp_path) == lines
    log = RunLog(tmp_path, 2)
    assert read_metrics(tmp_path) == lines[:3]
    log.write(3, a=30)
    assert read_metrics(tmp_path) == [*lines[:3], {"step": 3, "a": 30}]
    assert read_metrics(tmp_path / "nothing") == []


def test_a_long_log_is_never_in_memory(tmp_path: Path) -> None:
    num_lines = 20_000
    line = {"step": 1, "labels_nats": 2.5, "validation": {"kl_nats": 0.5}, "text": "x" * 200}
    (tmp_path / "metrics.jsonl").write_text((json.dumps(line) + "\n") * num_lines)
    tracemalloc.start()
    try:
        assert not RunLog(tmp_path, 1).lacks(1, "validation")
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1_000_000
    assert sum(1 for _ in metrics_lines(tmp_path)) == num_lines


@pytest.mark.parametrize(
    "stranger",
    [
        b"[1]", b"17", b'"x"', b"null", b'{"a": 1}', b'{"step": "x"}', b'{"step": null}', b'{"step": true}',
        b'{"step": 1e400}', b'{"step": 1, "seconds": "x"}', b"\xff\xfe", b"\x00", b"[" * 100_000, b"",
    ],
)  # fmt: skip
@pytest.mark.parametrize("tensorboard", [False, True])
def test_lines_that_are_not_a_runs_are_left_out(tmp_path: Path, stranger: bytes, tensorboard: bool) -> None:
    lines = [{"step": 1, "a": 1}, {"step": 2, "validation": {}}]
    first, second = (json.dumps(line).encode() for line in lines)
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([first, stranger, second, stranger]))
    assert read_metrics(tmp_path) == lines
    RunLog(tmp_path, 2, tensorboard=tensorboard).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == first + b"\n" + second + b"\n"


def test_a_full_disk_names_the_log(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 0)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(WriteRefusedError, match=r"metrics\.jsonl: the write failed \(No space left.*make room"):
        log.write(1, a=1)
