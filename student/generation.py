"""Text from a trained student, by transformers' own generation."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import GenerationConfig

from storage.errors import ConfigError
from student.errors import StudentContextError
from student.model import context_length_of, load_student, load_tokenizer


def generate_text(
    student: Path, prompt: str, *, max_new_tokens: int, temperature: float, top_p: float, seed: int
) -> str:
    """The prompt's continuation; temperature 0 takes the most probable token at every step.

    Raises NoSuchStudentError, ConfigError or StudentContextError.
    """
    if temperature < 0 or not 0 < top_p <= 1 or max_new_tokens < 1:
        raise ConfigError("--temperature must be at least 0, --top-p in (0, 1], --max-new-tokens at least 1")
    model, tokenizer = load_student(student).eval(), load_tokenizer(student)
    start = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else 0
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"] or [start]
    if len(ids) + max_new_tokens > context_length_of(model):
        raise StudentContextError(
            str(student), context_length_of(model), len(ids) + max_new_tokens, "prompt and --max-new-tokens"
        )
    # transformers fills what is not said below from settings shipped with the checkpoint; these are none of ours.
    model.generation_config = GenerationConfig()
    torch.manual_seed(seed)
    sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0} if temperature else {}
    output = model.generate(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
        generation_config=GenerationConfig(
            max_new_tokens=max_new_tokens, eos_token_id=tokenizer.eos_token_id, pad_token_id=start, **sampling
        ),
    )
    text: str = tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True)
    return text
