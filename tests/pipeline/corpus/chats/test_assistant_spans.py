"""What the assistant says, its end of turn too, and nothing else; or a refusal."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.corpus.chats.assistant_spans import assistant_spans
from pipeline.errors import RefusedChatError
from tests.pipeline.corpus.chats.templates import (
    CHATML,
    CONVERSATION,
    FORGETFUL,
    FORGETFUL_AND_MARKED,
    MARKED,
    MARKED_WITH_HEADER,
    STRICT,
    compiled,
)


def said(template: str, messages: list[dict[str, Any]] = CONVERSATION, first_wanted: int = 0) -> list[str]:
    text, spans = assistant_spans(compiled(template), messages, first_wanted)
    return [text[start:stop] for start, stop in spans]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, ["A teacher did.<|im_end|>\n", "Once.<|im_end|>\n"]),
        (MARKED, ["A teacher did.<|im_end|>", "Once.<|im_end|>"]),
        (MARKED_WITH_HEADER, [f"<|im_start|>assistant\n{words}<|im_end|>" for words in ("A teacher did.", "Once.")]),
        (FORGETFUL_AND_MARKED, ["A teacher did.</s>", "Once.</s>"]),
    ],
)
def test_every_answer_with_its_end(template: str, expected: list[str]) -> None:
    assert said(template) == expected


def test_answers_of_templates_without_a_generation_prompt() -> None:
    assert said(STRICT, CONVERSATION[1:]) == [" A teacher did.</s>", " Once.</s>"]


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_only_the_last_messages(template: str) -> None:
    (last,) = said(template, first_wanted=4)
    assert last.startswith("Once.")


def test_a_conversation_may_end_with_a_question() -> None:
    assert said(CHATML, CONVERSATION[:-1]) == ["A teacher did.<|im_end|>\n"]


def test_reasoning_that_is_forgotten_later_cannot_be_told_without_marks() -> None:
    assert said(FORGETFUL, CONVERSATION[:3]) == ["<think></think>A teacher did.</s>"]
    with pytest.raises(RefusedChatError, match=r"render differently alone.*generation.*--chat-template"):
        said(FORGETFUL)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (MARKED.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>"),
         r"leaves out '<\|im_end\|>\\n' of what the assistant says"),
        (MARKED.replace("== 'assistant'", "== 'user'"), r"marks 'Who taught you\?<\|im_end\|>', which the assistant"),
        (MARKED.replace("== 'assistant'", "== 'nobody'"), "marks nothing"),
        (FORGETFUL_AND_MARKED.replace("and loop.last", ""), "leaves out '<think></think>'"),
    ],
)  # fmt: skip
def test_marks_that_disagree_with_the_messages(template: str, words: str) -> None:
    with pytest.raises(RefusedChatError, match=words):
        said(template)


def test_a_list_of_parts_is_not_printed_as_python_shows_it() -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, {"role": "assistant", "content": "Yes"}]
    assert said(
        CHATML.replace("m['content'] }}", "m['content'] if m['content'] is string else m['content'][0].text }}"), parts
    )
    with pytest.raises(RefusedChatError, match="message 1: the template prints its content, a list of parts"):
        said(CHATML, parts)


def test_nothing_to_teach() -> None:
    with pytest.raises(RefusedChatError, match="no message of the assistant"):
        said(CHATML, CONVERSATION[:2])
