"""Show the results of the study of beginnings as tables."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from scripts.support.report import markdown_table

Student = dict[str, Any]

_IDENTITY = ("beginning", "targets", "positions", "learning_rate", "warmup_share")
_MEASURES = ("num_parameters", "kl_nats", "perplexity", "acceptance", "cpu_seconds_per_step")


def read_results(out: Path) -> dict[str, Any]:
    """Return the facts and runs of a study that are there so far."""
    runs = [json.loads(path.read_text()) for path in sorted((out / "runs").glob("*.json"))]
    facts: dict[str, Any] = json.loads((out / "facts.json").read_text())
    return facts | {"runs": runs}


def tables(results: dict[str, Any]) -> str:
    """Return a Markdown table for each comparison: a row for each kind of student, averaged over seeds.

    What is the same in all rows stands above a table.
    """
    runs = sorted(results["runs"], key=lambda run: (run["table"], run["steps"], run["seed"]))
    parts = []
    for (name, steps), group in groupby(runs, key=lambda run: (run["table"], run["steps"])):
        students = [student | {"seed": run["seed"]} for run in group for student in run["students"]]
        parts.append(f"### {name}: {steps} steps\n\n{_table(students)}")
    teacher = results["teacher"]
    about = f"Teacher: perplexity {teacher['perplexity']:.2f}, entropy {teacher['entropy_nats']:.2f} nats."
    importance = ", ".join(f"{value:.3f}" for value in results["importance"])
    return "\n\n".join([f"{about} Layers by importance: {importance}; kept: {results['layers']}.", *parts])


def _table(students: list[Student]) -> str:
    kinds: dict[tuple[Any, ...], dict[int, Student]] = {}
    for student in students:
        kinds.setdefault(tuple(student[name] for name in _IDENTITY), {})[student["seed"]] = student
    places = [kind[0] for kind in kinds]
    ordered = sorted(kinds.items(), key=lambda item: (places.index(item[0][0]), item[0][2] != "all"))
    rows = [_row(kind, seeds, _first(kind, kinds)) for kind, seeds in ordered]
    alike = {head: cell for head, cell in rows[0].items() if all(row[head] == cell for row in rows)}
    heads = [head for head in rows[0] if head not in alike]
    table = markdown_table(heads, ([row[head] for head in heads] for row in rows))
    return f"{', '.join(f'{head} {cell}' for head, cell in alike.items() if cell)}:\n\n{table}"


def _first(kind: tuple[Any, ...], kinds: dict[tuple[Any, ...], dict[int, Student]]) -> dict[int, Student]:
    """Return the first students of the same beginning that learn from the full distribution at all positions.

    While a study is running, there may be none yet.
    """
    return next((seeds for other, seeds in kinds.items() if other[:3] == (kind[0], "full", "all")), {})


def _row(kind: tuple[Any, ...], seeds: dict[int, Student], first: dict[int, Student]) -> dict[str, str]:
    columns = {name: [student[name] for student in seeds.values()] for name in _MEASURES}
    # Students of one seed share batches, so the ratio of two varies less than either.
    ratios = [student["kl_nats"] / first[seed]["kl_nats"] - 1 for seed, student in seeds.items() if seed in first]
    beginning, targets, positions, rate, warmup_share = kind
    kl, spread = _mean_and_spread(columns["kl_nats"], ".4f")
    ratio, spread_of_ratio = _mean_and_spread(ratios, "+.1%")
    return {
        "begins": beginning,
        "parameters": f"{columns['num_parameters'][0] / 1e6:.2f} M",
        "targets": targets,
        "positions": positions,
        "rate": f"{rate:g}",
        "warm-up": f"{warmup_share:g}",
        "seeds": str(len(seeds)),
        "KL nats/token": kl,
        "spread": spread,
        "to all, full": ratio,
        "its spread": spread_of_ratio,
        "perplexity": f"{np.mean(columns['perplexity']):.2f}",
        "acceptance": f"{np.mean(columns['acceptance']):.4f}",
        "CPU s/step": f"{np.mean(columns['cpu_seconds_per_step']):.3f}",
    }


def _mean_and_spread(values: list[float], form: str) -> tuple[str, str]:
    """Return mean and standard deviation as text, empty where there are too few values."""
    mean = format(np.mean(values), form) if values else ""
    return mean, format(np.std(values), form.removeprefix("+")) if len(values) > 1 else ""
