"""The demo's results: the students' measures as a dictionary and a table, and their texts beside the teacher's."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

from scripts.demo.sides import Side
from storage import Cache
from storage.rows.samples import decode

_PROMPTS_SHOWN = 3


def results_of(side: Side, cache: Cache, students: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """Return the teacher's measures, which the cache knows, and what `evaluate --json` says of each student."""
    teacher = cache.identity.teacher
    results: dict[str, dict[str, Any]] = {
        "teacher": {
            "num_parameters": teacher["num_parameters"],
            "model_bytes": teacher["weights_bytes"],
            "perplexity": cache.manifest.teacher_perplexity("validation"),
            "kl_nats": 0.0,
            "top1_agreement": 1.0,
            "selection_accuracy": 1.0,
        }
    }
    for name, directory in students.items():
        printed = side.run(
            "teachonce-student", "evaluate", str(directory), "--cache", str(cache.path), "--num-prompts", "0", "--json"
        )
        results[name] = json.loads(printed)
    return results


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return a line per model."""
    chance = results["student"]["selection_chance"]
    lines = [
        f"\n{'':<10}{'parameters':>12}{'bytes':>14}{'perplexity':>12}{'KL nats/token':>18}{'top-1':>8}"
        f"{f'selection (chance {chance:.2f})':>26}"
    ]
    for name, found in results.items():
        error = f" ± {found['kl_standard_error']:.4f}" if found.get("kl_standard_error") is not None else ""
        kl = f"{found['kl_nats']:.4f}{error}"
        lines.append(
            f"{name:<10}{found['num_parameters']:>12,}{found['model_bytes']:>14,}{found['perplexity']:>12.2f}{kl:>18}"
            f"{found['top1_agreement']:>8.3f}{found['selection_accuracy']:>26.3f}"
        )
    return "\n".join(lines)


def continuations(side: Side, cache: Cache, students: dict[str, Path]) -> str:
    """Show held-out prompts with the continuations of the teacher (from the cache) and of the students."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(cache.tokenizer_dir)
    lines = []
    rows = (row for batch in cache.record_batches("samples", "validation") for row in decode(batch))
    for row in islice((row for row in rows if row.sample_index == 0), _PROMPTS_SHOWN):
        prompt = tokenizer.decode(row.prompt_ids.tolist())
        lines += [f"\nprompt   {prompt!r}", f"teacher  {row.text!r}"]
        for name, directory in students.items():
            text = side.run(
                "teachonce-student", "generate", str(directory), "--prompt", prompt,
                "--max-new-tokens", "48", "--temperature", "1", "--top-p", "1", "--seed", str(row.row_id),
                shown=False,
            )  # fmt: skip
            lines.append(f"{name:<8} {text[:-1]!r}")
    return "\n".join(lines)
