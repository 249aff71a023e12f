"""A student of the report: its settings, its log, its measures, and its speed of generation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.rows.kinds import KINDS
from student.report.training_log import TrainingLog

# Returns the text of token ids that follow other token ids, special tokens shown.
TextOf = Callable[[Any, Any], str]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A student of the report.

    name: its name on the page.
    settings: content of run.json, empty for a model that teachonce did not train.
    log: what metrics.jsonl says, empty without one.
    measures: results of student.evaluate.
    tokens_per_second: speed of generation at batch size 1 on this machine, None where it was not measured.
    """

    name: str
    directory: Path
    settings: dict[str, Any]
    log: TrainingLog
    measures: dict[str, Any]
    tokens_per_second: float | None

    @property
    def is_baseline(self) -> bool:
        """Whether it was trained on plain text alone, with no weight on anything from the teacher."""
        mix = self.settings.get("mix")
        if not isinstance(mix, dict):
            return False
        kinds = mix.keys() & KINDS.keys()
        return bool(kinds) and all(mix[kind] == 0 for kind in kinds)


def distinct_names(directories: Sequence[Path]) -> list[str]:
    """Return the last part of each path. When two are equal, take more parts of all paths."""
    resolved = [directory.resolve() for directory in directories]
    num_parts = 1
    while True:
        names = ["/".join(path.parts[-num_parts:]) for path in resolved]
        if len(set(names)) == len(set(resolved)) or num_parts > max(len(path.parts) for path in resolved):
            return names
        num_parts += 1
