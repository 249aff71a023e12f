"""Find what the assistant says in a rendered conversation, as spans of characters.

Templates with {% generation %} blocks mark it themselves. For other templates it is inferred: what the assistant says
in message i begins where the rendering of the messages before it, with the generation prompt, ends, and ends where the
rendering of the messages through it ends. So the end of its turn is part of it, and the student learns to stop.
"""

from __future__ import annotations

from typing import NamedTuple

from pipeline.corpus.chats.template import ChatTemplate, Message, Span
from pipeline.errors import RefusedChatError

_REMEDY = (
    "give a template with {% generation %} around all that the assistant says, its end of turn too, by --chat-template"
)


class _Turn(NamedTuple):
    """An assistant's turn: its first character, the first after its header, and the first after its end."""

    start: int
    said: int
    stop: int


def assistant_spans(template: ChatTemplate, messages: list[Message], first_wanted: int) -> tuple[str, list[Span]]:
    """Return the rendered conversation, and the spans of what the assistant says in messages[first_wanted:].

    Raises RefusedChatError when the template refuses the messages, when there is no such message, or when marked and
    inferred spans differ in more than white space and the header of a turn.
    """
    text, marks = template.render_marked(messages)
    indices = [i for i, message in enumerate(messages) if message["role"] == "assistant" and i >= first_wanted]
    if not indices:
        raise RefusedChatError("no message of the assistant, so there is nothing to teach")
    if not template.marks_assistant:
        return text, [_said(template, messages, i, text) for i in indices]
    first_char = len(_prefix(template, messages[:first_wanted], text, prompt=False)) if first_wanted else 0
    spans = [(start, stop) for start, stop in marks if start >= first_char and text[start:stop]]
    try:
        turns = [_turn(template, messages, i, text) for i in indices]
    except RefusedChatError:  # the template renders a message differently at other places: only it can tell
        turns = []
    _require_agreement(text, spans, turns)
    return text, spans


def _turn(template: ChatTemplate, messages: list[Message], index: int, text: str) -> _Turn:
    """Infer the turn of one message. Raises RefusedChatError when a prefix renders to no prefix of the whole."""
    before = messages[:index]
    start = len(_prefix(template, before, text, prompt=False)) if before else 0
    return _Turn(start, *_said(template, messages, index, text))


def _said(template: ChatTemplate, messages: list[Message], index: int, text: str) -> Span:
    """Infer what the assistant says in one message. Raises RefusedChatError as `_turn` does."""
    said = len(_prefix(template, messages[:index], text, prompt=True))
    is_last = index == len(messages) - 1
    stop = len(text if is_last else _prefix(template, messages[: index + 1], text, prompt=False))
    return said, stop


def _prefix(template: ChatTemplate, messages: list[Message], text: str, *, prompt: bool) -> str:
    rendered = template.render(messages, add_generation_prompt=prompt)
    if not text.startswith(rendered):
        raise RefusedChatError(
            f"what the assistant says cannot be told: the first {len(messages)} messages render differently alone than "
            f"in the whole conversation; {_REMEDY}"
        )
    return rendered


def _require_agreement(text: str, spans: list[Span], turns: list[_Turn]) -> None:
    if not spans:
        raise RefusedChatError("the template's {% generation %} marks nothing")
    outside = [span for span in spans if not any(turn.start <= span[0] and span[1] <= turn.stop for turn in turns)]
    if turns and outside:
        raise RefusedChatError(
            f"the template's {{% generation %}} marks {_shown(text, outside[0])}, which the assistant does not say; "
            f"{_REMEDY}"
        )
    for turn in turns:
        missed = _without(text, (turn.said, turn.stop), spans)
        if missed.strip():
            raise RefusedChatError(
                f"the template's {{% generation %}} leaves out {missed[:40]!r} of what the assistant says; {_REMEDY}"
            )


def _without(text: str, whole: Span, spans: list[Span]) -> str:
    """Return the characters of `whole` that lie in none of the ascending spans."""
    kept, place = [], whole[0]
    for start, stop in spans:
        if stop > place and start < whole[1]:
            kept.append(text[place : max(place, start)])
            place = max(place, stop)
    return "".join([*kept, text[place : whole[1]]])


def _shown(text: str, span: Span) -> str:
    return repr(text[span[0] : span[1]][:40])
