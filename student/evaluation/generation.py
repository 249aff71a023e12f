"""The student's texts for held-out prompts beside the teacher's texts, measured in the same way."""

from __future__ import annotations

from typing import Any

from storage.reading.cache import Cache
from student.evaluation.continuations import SamplingSettings, choose_prompts, continue_prompts, without_end
from student.evaluation.texts import has_sacrebleu, measure_texts


def measure_generation(
    model: Any, cache: Cache, settings: SamplingSettings, *, num_prompts: int, quiet: bool
) -> dict[str, Any]:
    """Return the figures of "student" and "teacher" (see measure_texts), from equally many texts for each prompt."""
    prompts = choose_prompts(cache, num_prompts)
    rows = [row for of_prompt in prompts for row in of_prompt]
    continuations = iter(continue_prompts(model, rows, settings, quiet=quiet))
    students = [[next(continuations) for _ in of_prompt] for of_prompt in prompts]
    teachers = [[row.completion_ids for row in of_prompt] for of_prompt in prompts]
    with_self_bleu = has_sacrebleu()
    return {
        side: measure_texts(
            [[without_end(ids, settings.end_ids).tolist() for ids in of_prompt] for of_prompt in texts],
            cache.identity.vocab_size,
            with_self_bleu=with_self_bleu,
        )
        for side, texts in (("student", students), ("teacher", teachers))
    }
