"""The log of a run: a line a step, cut back to the checkpoint when the run resumes."""

from __future__ import annotations

import json
from pathlib import Path

from student.training.run_log import RunLog, read_metrics


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
