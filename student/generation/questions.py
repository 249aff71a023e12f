"""Turn what a user says into the prompt of a student that was trained on conversations."""

from __future__ import annotations

from typing import Any

from storage.errors import first_line
from student.errors import ChatPromptError


def question_ids(tokenizer: Any, question: str, student: str) -> list[int]:
    """Return the token ids of a user's message as the tokenizer's chat template renders it, ready for the answer.

    The template came with the cache. student: its name in messages. Raise ChatPromptError when there is no template, or
    it refuses the message.
    """
    if not isinstance(tokenizer.chat_template, str):
        raise ChatPromptError(student, "it has no chat template")
    messages = [{"role": "user", "content": question}]
    try:
        text: str = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # whatever a template does with a message
        raise ChatPromptError(student, first_line(error)) from error
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
