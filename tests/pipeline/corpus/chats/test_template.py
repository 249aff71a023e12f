"""A rendering is what transformers renders, and the same in every run."""

from __future__ import annotations

import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from pipeline import PrecomputeConfig
from pipeline.corpus.chats.template import chat_template_of, choose_chat_template
from pipeline.errors import ChatTemplateError, RefusedChatError
from tests.pipeline.corpus.chats.templates import CHATML, CONVERSATION, DATED, MARKED, STRICT, compiled


@pytest.mark.parametrize("text", [CHATML, MARKED])
@pytest.mark.parametrize("prompt", [True, False])
def test_renders_what_transformers_renders(teacher_dir: Path, text: str, prompt: bool) -> None:
    tokenizer = AutoTokenizer.from_pretrained(teacher_dir)
    messages: list[dict[str, Any]] = [*CONVERSATION, {"role": "user", "content": "Bye", "tool_calls": None}]
    expected = tokenizer.apply_chat_template(messages, chat_template=text, tokenize=False, add_generation_prompt=prompt)
    assert compiled(text).render(messages, add_generation_prompt=prompt) == expected


def test_a_template_prints_the_date_of_the_run_and_leaves_the_clock_of_others_alone(teacher_dir: Path) -> None:
    assert compiled(DATED).render(CONVERSATION).startswith("Today is 01 Mar 2026.\n")
    assert compiled(DATED, chat_date="1999-12-31").render(CONVERSATION).startswith("Today is 31 Dec 1999.\n")
    tokenizer = AutoTokenizer.from_pretrained(teacher_dir)
    now = tokenizer.apply_chat_template(CONVERSATION, chat_template="{{ strftime_now('%Y') }}", tokenize=False)
    assert now == str(datetime.date.today().year)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{% if true %}\n{{ 1 + }}{% endif %}", "line 2 of the chat template: "),
        ("{{ messages | no_such_filter }}", "line 1 of the chat template: No filter named 'no_such_filter'"),
        ("{{ messages | random }}", "uses 'random', so each run would render other texts"),
        ("{{ lipsum() }}", "uses 'lipsum'"),
    ],
)
def test_templates_that_fit_no_row(text: str, words: str) -> None:
    with pytest.raises(ChatTemplateError, match=r"--chat-template x.jinja: .*; expected one Jinja template") as caught:
        compiled(text)
    assert words in caught.value.reason


@pytest.mark.parametrize(
    ("text", "messages", "words"),
    [
        (STRICT, CONVERSATION, "Conversation roles must alternate user/assistant/..."),
        (CHATML.replace("m['content'] }}", "m['content'] + '.' }}"), [{"role": "user", "content": [{"text": "a"}]}],
         "TypeError: can only concatenate list"),
        ("{{ messages[0].content.no.such }}", CONVERSATION, "no attribute 'no'"),
        ("{{ messages[0].__class__.__mro__ }}", CONVERSATION, "unsafe"),
        ("{{ 1 // 0 }}", CONVERSATION, "ZeroDivisionError"),
    ],
)  # fmt: skip
def test_a_template_that_refuses_a_conversation_is_quoted(text: str, messages: Any, words: str) -> None:
    with pytest.raises(RefusedChatError) as caught:
        compiled(text).render(messages)
    assert words in caught.value.reason


def test_a_prompt_of_parts_is_not_printed_as_python_shows_it() -> None:
    with pytest.raises(RefusedChatError, match="message 1: the template prints its content, a list of parts"):
        compiled(CHATML).render([{"role": "user", "content": [{"type": "text", "text": "Hi"}]}])


def chosen(tmp_path: Path, own: Any, **settings: Any) -> Any:
    tokenizer = SimpleNamespace(chat_template=own, special_tokens_map={})
    config = PrecomputeConfig(teacher="t", data="d", out=tmp_path, **settings)
    choose_chat_template(tokenizer, config)
    return tokenizer.chat_template


def test_which_template_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text(CHATML)
    assert chosen(tmp_path, STRICT) == STRICT
    assert chosen(tmp_path, {"default": CHATML, "rag": STRICT}, messages_column="messages") == CHATML
    assert chosen(tmp_path, {"tool_use": STRICT, "rag": STRICT}) == {"tool_use": STRICT, "rag": STRICT}
    for own in (None, STRICT, {"rag": STRICT}):
        assert chosen(tmp_path, own, chat_template=file, messages_column="messages") == CHATML


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"tool_use": STRICT, "rag": STRICT}, r"--teacher t: .*several chat templates, \['rag', 'tool_use'\].*--chat-"),
        (None, "--teacher t: its tokenizer has no chat template; expected .*--chat-template FILE"),
        ("{% if %}", "--teacher t: line 1 of the chat template"),
    ],
)
def test_no_template_for_conversations(tmp_path: Path, own: Any, words: str) -> None:
    with pytest.raises(ChatTemplateError, match=words):
        chosen(tmp_path, own, messages_column="messages")


def test_a_template_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bytes.jinja").write_bytes(b"\xff\xfe")
    for file in (tmp_path / "missing.jinja", tmp_path, tmp_path / "bytes.jinja"):
        with pytest.raises(ChatTemplateError, match="cannot be read"):
            chosen(tmp_path, None, chat_template=file)


def test_a_prompt_that_no_template_can_render(tmp_path: Path) -> None:
    config = PrecomputeConfig(teacher="t", data="d", out=tmp_path)
    with pytest.raises(ChatTemplateError):
        chat_template_of(SimpleNamespace(chat_template=None), config)
