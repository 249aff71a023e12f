"""Check the conversation or the pair of a row, and make one text of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.corpus.chats.assistant_spans import assistant_spans
from pipeline.corpus.chats.template import ChatTemplate, Message, Span
from pipeline.errors import RefusedChatError
from pipeline.sources.turns import Conversation, Pair


@dataclass(frozen=True, kw_only=True)
class TaughtText:
    """A text, and the spans of its characters that the teacher is to teach."""

    text: str
    spans: list[Span]


def taught_text(turns: Conversation | Pair, template: Callable[[], ChatTemplate]) -> TaughtText:
    """Return the text of a row. Raises RefusedChatError, and the errors of `template`, called for conversations."""
    if isinstance(turns, Conversation):
        return _of_conversation(turns.messages, 0, template)
    prompt, completion = turns
    if isinstance(prompt, list):
        answer = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
        if not isinstance(answer, list):
            raise RefusedChatError(f"the completion is {_named(answer)}, expected text or messages")
        return _of_conversation([*prompt, *answer], len(prompt), template)
    for name, value in (("prompt", prompt), ("completion", completion)):
        if not isinstance(value, str):
            raise RefusedChatError(f"the {name} is {_named(value)}, expected text")
    text = prompt + completion
    return TaughtText(text=text, spans=[(len(prompt), len(text))])


def _of_conversation(messages: Any, first_wanted: int, template: Callable[[], ChatTemplate]) -> TaughtText:
    text, spans = assistant_spans(template(), checked_messages(messages), first_wanted)
    return TaughtText(text=text, spans=spans)


def question_of(messages: Any) -> list[Message]:
    """Return the messages before the answer that ends a conversation. Raises RefusedChatError."""
    question = checked_messages(messages)
    while question and question[-1]["role"] == "assistant":
        question = question[:-1]
    return checked_messages(question)


def checked_messages(messages: Any) -> list[Message]:
    """Return the messages of a conversation. Raises RefusedChatError, which names the first that is none."""
    if not isinstance(messages, list):
        raise RefusedChatError(f"holds {_named(messages)}, expected a list of messages")
    if not messages:
        raise RefusedChatError("holds no message")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict):
            raise RefusedChatError(f"message {number} is {_named(message)}, expected an object with role and content")
        if not isinstance(message.get("role"), str):
            raise RefusedChatError(f"message {number} has no role")
        content = message.get("content")
        # A message that calls tools may say nothing.
        if not isinstance(content, str | list) and not (content is None and message.get("tool_calls")):
            raise RefusedChatError(f"message {number} has {_named(content)} for content, expected text")
    return messages


def _named(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__
