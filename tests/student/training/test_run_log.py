"""The log of a run: a line a step, cut back to the checkpoint when the run resumes."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

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
