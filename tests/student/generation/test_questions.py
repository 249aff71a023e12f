"""generate --chat: a prompt is what a user says, as the chat template of the cache renders it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from student import Generator
from student.errors import ChatPromptError
from student.run_record import RUN_NAME

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
RENDERED = "<user>Who?<assistant>"


def test_a_question_is_continued_as_its_rendering_is(saved: Path) -> None:
    (saved / "chat_template.jinja").write_text(TEMPLATE)
    asked, typed = (Generator(saved, device="cpu", chat=chat) for chat in (True, False))
    assert asked.num_tokens("Who?") == typed.num_tokens(RENDERED)
    assert asked.generate("Who?", max_new_tokens=9) == typed.generate(RENDERED, max_new_tokens=9)


def test_control_tokens_of_the_template_are_control_tokens(saved: Path) -> None:
    (saved / "chat_template.jinja").write_text("<|endoftext|>" + TEMPLATE)
    assert Generator(saved, device="cpu", chat=True).num_tokens("Who?") == 1 + len(RENDERED)


def test_a_beginning_that_the_template_writes_is_not_doubled(saved: Path) -> None:
    (saved / "chat_template.jinja").write_text(TEMPLATE)
    beginning_ids = AutoTokenizer.from_pretrained(saved)(RENDERED[:2])["input_ids"]
    (saved / RUN_NAME).write_text(json.dumps({"beginning_ids": beginning_ids}))
    assert Generator(saved, device="cpu", chat=True).num_tokens("Who?") == len(RENDERED)
    assert Generator(saved, device="cpu").num_tokens(RENDERED) == 2 + len(RENDERED)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (None, "it has no chat template"),
        ("{{ raise_exception('no users') }}", "no users"),
        ("{% if %}", "Expected an exp"),
    ],
)
def test_no_template_renders_the_prompt(saved: Path, template: str | None, words: str) -> None:
    if template:
        (saved / "chat_template.jinja").write_text(template)
    with pytest.raises(ChatPromptError, match=f"--chat: {words}.*; expected a chat template"):
        Generator(saved, device="cpu", chat=True).generate("Who?")
