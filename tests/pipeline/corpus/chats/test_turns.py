"""Rows as people write them: what is taught of each, or why it cannot be used."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.corpus.chats.assistant_spans import assistant_spans
from pipeline.corpus.chats.turns import joined_pair, messages_of, question_of
from pipeline.errors import RefusedChatError
from pipeline.sources.turns import Conversation, Pair
from tests.pipeline.corpus.chats.templates import CHATML, CONVERSATION, compiled


def taught(turns: Conversation | Pair) -> tuple[str, list[str]]:
    if isinstance(turns, Pair) and not isinstance(turns.prompt, list):
        text, spans = joined_pair(turns)
    else:
        text, spans = assistant_spans(compiled(CHATML), *messages_of(turns))
    return text, [text[start:stop] for start, stop in spans]


def test_a_pair_of_texts_is_one_text() -> None:
    assert taught(Pair("Q: who? A:", " a teacher")) == ("Q: who? A: a teacher", [" a teacher"])


@pytest.mark.parametrize("completion", ["Once.", CONVERSATION[4:]])
def test_a_pair_of_messages_is_a_conversation_whose_last_ones_are_taught(completion: Any) -> None:
    text, spans = taught(Pair(CONVERSATION[:4], completion))
    assert text == taught(Conversation(CONVERSATION))[0]
    assert spans == ["Once.<|im_end|>\n"]


def test_a_message_that_calls_tools_may_say_nothing() -> None:
    calls = {"role": "assistant", "content": None, "tool_calls": [{"name": "look"}]}
    assert taught(Conversation([*CONVERSATION[:2], calls]))[1] == ["<|im_end|>\n"]


def test_a_prompt_is_what_comes_before_the_last_answer() -> None:
    assert question_of(CONVERSATION) == CONVERSATION[:4]
    assert question_of(CONVERSATION[:4]) == CONVERSATION[:4]
    assert question_of(CONVERSATION[2:3]) == question_of([]) == []


@pytest.mark.parametrize(
    ("turns", "words"),
    [
        (Conversation(None), "holds nothing, expected a list of messages"),
        (Conversation("Hi"), "holds str, expected a list of messages"),
        (Conversation([]), "holds no message"),
        (Conversation(["Hi"]), "message 1 is str"),
        (Conversation([*CONVERSATION, {"content": "Hi"}]), "message 6 has no role"),
        (Conversation([*CONVERSATION, {"role": None, "content": "Hi"}]), "message 6 has no role"),
        (Conversation([{"role": "user", "content": None}]), "message 1 has nothing for content, expected text"),
        (Conversation([{"role": "user"}]), "message 1 has nothing for content"),
        (Conversation([{"role": "user", "content": 7}]), "message 1 has int for content"),
        (Pair("Q", None), "the completion is nothing, expected text"),
        (Pair(7, "A"), "the prompt is int, expected text"),
        (Pair("Q", CONVERSATION), "the completion is list, expected text"),
        (Pair(CONVERSATION[:2], 7), "the completion is int, expected text or messages"),
        (Pair(CONVERSATION[:2], []), "no message of the assistant"),
    ],
)
def test_rows_that_cannot_be_used(turns: Conversation | Pair, words: str) -> None:
    with pytest.raises(RefusedChatError) as caught:
        taught(turns)
    assert words in caught.value.reason
