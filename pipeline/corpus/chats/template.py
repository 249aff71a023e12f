"""Chat templates: choose one, compile it, and render messages the same way in every run.

A rendering must be a pure function of the messages. So the date that a template may print is a setting, and templates
that draw at random are refused. Templates run in the sandbox of transformers.
"""

from __future__ import annotations

import contextlib
import datetime
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
from transformers.utils import chat_template_utils

from pipeline.config import PrecomputeConfig
from pipeline.errors import ChatTemplateError, RefusedChatError
from storage.errors import first_line

_CLOCK = "strftime_now"
_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")

Message = dict[str, Any]
Span = tuple[int, int]


class ChatTemplate:
    """A compiled chat template.

    marks_assistant: whether it has {% generation %} blocks.
    """

    def __init__(self, text: str, name: str, *, special_tokens: dict[str, str], chat_date: str | None) -> None:
        """name: what the template is called in messages. chat_date: the date that strftime_now prints (YYYY-MM-DD).

        Raises ChatTemplateError when it does not compile, or when its renderings would differ from run to run.
        """
        self._text, self._special_tokens = text, special_tokens
        self.marks_assistant = _GENERATION.search(text) is not None
        try:
            self._environment = chat_template_utils._compile_jinja_template(text).environment
            _require_pure(self._environment.parse(text), name)
        except jinja2.TemplateError as error:
            raise ChatTemplateError(name, _words(error)) from error
        if uses_clock(text):
            assert chat_date is not None, "the run chooses a date"
            self._now = datetime.datetime.fromisoformat(chat_date)

    def render(self, messages: list[Message], *, add_generation_prompt: bool = False) -> str:
        """Return the text of a conversation. Raises RefusedChatError, which holds the template's words."""
        return self._render(messages, add_generation_prompt=add_generation_prompt)[0]

    def render_marked(self, messages: list[Message]) -> tuple[str, list[Span]]:
        """Return the text, and the characters [start, stop) of each {% generation %} block. Raises RefusedChatError."""
        return self._render(messages, return_assistant_tokens_mask=self.marks_assistant)

    def _render(self, messages: list[Message], **options: bool) -> tuple[str, list[Span]]:
        # Files and servers write null for a field that a message lacks; templates ask whether it is there.
        present = [{key: value for key, value in message.items() if value is not None} for message in messages]
        try:
            with self._fixed_clock():
                texts, marks = chat_template_utils.render_jinja_template(
                    conversations=[present], chat_template=self._text, **options, **self._special_tokens
                )
        except Exception as error:  # whatever a template does with a row that it was not written for
            raise RefusedChatError(_words(error)) from error
        _refuse_printed_parts(texts[0], present)
        return texts[0], marks[0] if marks else []

    @contextlib.contextmanager
    def _fixed_clock(self) -> Iterator[None]:
        """Let strftime_now print the run's date at midnight. transformers shares the environment, so put it back."""
        clock = self._environment.globals[_CLOCK]
        if uses_clock(self._text):
            self._environment.globals[_CLOCK] = self._now.strftime
        try:
            yield
        finally:
            self._environment.globals[_CLOCK] = clock


def choose_chat_template(tokenizer: Any, config: PrecomputeConfig) -> None:
    """Give the tokenizer the one template of the run: --chat-template, else its own, else its own named "default".

    The tokenizer is saved with it. Leave several templates without a default as they are: a run may not need any.
    Raises ChatTemplateError when the file cannot be read, or the text is to be conversations and there is no usable
    template.
    """
    if config.chat_template is not None:
        tokenizer.chat_template = _read(config.chat_template)
    elif isinstance(tokenizer.chat_template, dict):
        tokenizer.chat_template = tokenizer.chat_template.get("default", tokenizer.chat_template)
    if config.messages_column is not None:
        chat_template_of(tokenizer, config)


def chat_template_of(tokenizer: Any, config: PrecomputeConfig) -> ChatTemplate:
    """Return the template that choose_chat_template chose. Raises ChatTemplateError when there is none."""
    text = tokenizer.chat_template
    own = f"--teacher {config.teacher}"
    if text is None:
        raise ChatTemplateError(own, "its tokenizer has no chat template")
    if not isinstance(text, str):
        raise ChatTemplateError(own, f"its tokenizer has several chat templates, {sorted(text)}, and no 'default'")
    name = own if config.chat_template is None else f"--chat-template {config.chat_template}"
    return ChatTemplate(text, name, special_tokens=dict(tokenizer.special_tokens_map), chat_date=config.chat_date)


def uses_clock(template: Any) -> bool:
    """Return whether a template prints the time."""
    return isinstance(template, str) and _CLOCK in template


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ChatTemplateError(f"--chat-template {path}", f"cannot be read ({first_line(error)})") from error


def _require_pure(parsed: jinja2.nodes.Template, name: str) -> None:
    """Raise ChatTemplateError for the parts of Jinja that draw at random."""
    filters = {node.name for node in parsed.find_all(jinja2.nodes.Filter)}
    names = {node.name for node in parsed.find_all(jinja2.nodes.Name)}
    if found := (filters & {"random"}) | (names & {"lipsum"}):
        raise ChatTemplateError(name, f"its chat template uses {found.pop()!r}, so each run would render other texts")


def _refuse_printed_parts(text: str, messages: list[Message]) -> None:
    """Refuse a template for plain strings that printed a list of parts as Python shows it."""
    for number, message in enumerate(messages, 1):
        if isinstance(message.get("content"), list) and str(message["content"]) in text:
            raise RefusedChatError(
                f"message {number}: the template prints its content, a list of parts, as it stands; expected text"
            )


def _words(error: Exception) -> str:
    """Return what Jinja, or the template itself, says; name errors of Python, whose words alone say little."""
    if isinstance(error, jinja2.TemplateSyntaxError):
        return f"line {error.lineno} of the chat template: {error.message}"
    words = first_line(error)
    return words if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: {words}"
