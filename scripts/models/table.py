"""The page of verdicts: `docs/models.md`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import transformers

from scripts.models.left_out import LEFT_OUT
from scripts.models.sweep import Found
from scripts.models.verdict import BY_ROW, YES

_GOOD = (YES, BY_ROW)
_HEAD = """\
# Which models can teach, and which can learn?

Of the {num_families} families and variants below, {num_teachers} are right as teachers and {num_students} as students.
Right means that a tiny random model of the family was run through everything, and that every number agreed with what
the model says of each text alone, in float64: soft targets, samples and beams of a teacher; the gradient, `evaluate`
and greedy texts of a student that was trained from a config .json.

`a document a row`: the model cannot keep packed documents apart, so it reads each in a row of its own. What is stored
is the same. A family that is refused is refused before any work, with the line that stands here.

`python -m scripts.models --page docs/models.md` tries all of them, which takes some minutes, and writes this page, here
with transformers {version}. `pytest -m models` compares the page with what is.

| family | teacher | student | why not |
|---|---|---|---|
"""


def render(found: Mapping[str, Found]) -> str:
    """Return the page as Markdown."""
    head = _HEAD.format(
        num_families=len(found),
        num_teachers=sum(one.teacher.word in _GOOD for one in found.values()),
        num_students=sum(one.student.word in _GOOD for one in found.values()),
        version=transformers.__version__,
    )
    return head + "\n".join([*(_row(found[family]) for family in sorted(found)), "", *_left_out(), ""])


def read_words(page: Path) -> dict[str, tuple[str, str]]:
    """Return the words about teacher and student in the rows of a page, by family."""
    cells = [line.strip("| ").split(" | ") for line in page.read_text().splitlines() if line.startswith("| `")]
    return {family.strip("`"): (teacher, student) for family, teacher, student, *_ in cells}


def _row(found: Found) -> str:
    reasons = [
        f"{side}: {_cell(verdict.why, found.family)}"
        for side, verdict in (("teacher", found.teacher), ("student", found.student))
        if verdict.why
    ]
    return f"| `{found.family}` | {found.teacher.word} | {found.student.word} | {'; '.join(reasons)} |"


def _cell(line: str, family: str) -> str:
    for beginning in (f"teacher {family}: ", f"--preset {family}: ", f"{family}: "):
        line = line.removeprefix(beginning)
    return line.replace("|", "\\|")


def _left_out() -> list[str]:
    reasons: dict[str, list[str]] = {}
    for family, reason in sorted(LEFT_OUT.items()):
        reasons.setdefault(reason, []).append(f"`{family}`")
    lines = [f"- {reason}: {', '.join(names)}" for reason, names in reasons.items()]
    return ["transformers counts further types among the causal ones. They are not tried:", "", *lines]
