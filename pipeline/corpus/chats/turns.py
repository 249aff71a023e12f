"""Check the conversation or the pair of a row."""

from __future__ import annotations

from typing import Any

from pipeline.corpus.chats.template import Message, Span
from pipeline.errors import RefusedChatError
from pipeline.sources.turns import Conversation, Pair


def joined_pair(pair: Pair) -> tuple[str, list[Span]]:
    """Return the text of a pair of texts, and the span of its completion. Raises RefusedChatError."""
    for name, value in zip(("prompt", "completion"), pair, strict=True):
        if not isinstance(value, str):
            raise RefusedChatError(f"the {name} is {_named(value)}, expected text")
    text = pair.prompt + pair.completion
    return text, [(len(pair.prompt), len(text))]


def messages_of(turns: Conversation | Pair) -> tuple[list[Message], int]:
    """Return the messages of a conversation, or of a pair of messages, and the index of the first to be taught.

    A completion that is a text is what the assistant says. Raises RefusedChatError.
    """
    if isinstance(turns, Conversation):
        return checked_messages(turns.messages), 0
    answer = turns.completion
    if isinstance(answer, str):
        answer = [{"role": "assistant", "content": answer}]
    if not isinstance(answer, list):
        raise RefusedChatError(f"the completion is {_named(answer)}, expected text or messages")
    return checked_messages([*turns.prompt, *answer]), len(turns.prompt)


def question_of(messages: Any) -> list[Message]:
    """Return the messages before the answer that ends a conversation; none where it begins with that answer.

    Raises RefusedChatError.
    """
    question = checked_messages(messages) if messages != [] else []
    while question and question[-1]["role"] == "assistant":
        question = question[:-1]
    return question


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
