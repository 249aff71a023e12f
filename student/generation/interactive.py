"""Read prompts line by line from a terminal or a pipe, and print text as it is drawn, or ranked candidates."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from storage.errors import ConfigError, TeachonceError
from student.config import SamplingConfig

if TYPE_CHECKING:
    from student.generation.generator import Generator

_MARKER = "> "
_SET = "/set"
# Control characters that a terminal obeys instead of showing them, except for line breaks and tabs.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def write_answer(
    generator: Generator,
    prompt: str,
    sampling: SamplingConfig,
    num_candidates: int | None = None,
    *,
    keep_end: bool = False,
) -> None:
    """Print the prompt's continuation as it is drawn, or num_candidates ranked candidates, one a line, best first.

    Raise as Generator.stream and Generator.candidates do.
    """
    if num_candidates is not None:
        found = generator.candidates(prompt, num_candidates, **asdict(sampling), keep_end=keep_end)
        for candidate in found:
            print(f"{candidate.score:9.4f}  {candidate.text!r} ({candidate.finish_reason})", flush=True)
        return
    is_terminal = sys.stdout.isatty()
    for piece in generator.stream(prompt, **asdict(sampling), keep_end=keep_end):
        print(_shown(piece) if is_terminal else piece, end="", flush=True)
    print(flush=True)


def converse(generator: Generator, sampling: SamplingConfig, num_candidates: int | None = None) -> None:
    """Continue every line of standard input, each with another seed, until the input ends.

    On a terminal, an empty line or Ctrl-D ends too, Ctrl-C stops an answer, `/set NAME VALUE` changes a setting of the
    sampling, and an error is shown before the next prompt is read. In a pipe, every line is a prompt, and the first
    error is raised.
    """
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    lines = _typed_lines() if is_terminal else _piped_lines()
    has_warned = False
    for line in lines:
        try:
            if is_terminal and line.split()[0] == _SET:
                sampling = _changed(sampling, line.split()[1:])
                continue
            room = generator.context_length - sampling.max_new_tokens
            if not has_warned and 0 < room < generator.num_tokens(line):
                has_warned = True
                _note(
                    f"the prompt is too long for the student's context of {generator.context_length} tokens; "
                    f"of such prompts the last {room} tokens are continued"
                )
            drawn, sampling = sampling, replace(sampling, seed=sampling.seed + (num_candidates or 1))
            write_answer(generator, line, drawn, num_candidates, keep_end=True)
            print(flush=True)
        except TeachonceError as error:
            if not is_terminal:
                raise
            _note(str(error))
        except KeyboardInterrupt:
            if not is_terminal:
                raise
            print()


def _typed_lines() -> Iterator[str]:
    """Yield lines from a terminal until an empty one or Ctrl-D, with history and editing if Python has readline."""
    with suppress(ImportError):
        importlib.import_module("readline")
    _note(
        "the student continues each line that you type, by itself\n"
        "Ctrl-C stops an answer; an empty line or Ctrl-D ends\n"
        f"{_SET} shows how text is drawn; {_SET} temperature 0.5 changes it"
    )
    while True:
        try:
            line = input(_MARKER)
        except KeyboardInterrupt:
            print()
            continue
        except EOFError:
            print()
            return
        if not line.strip():
            return
        yield line


def _piped_lines() -> Iterator[str]:
    for line in sys.stdin.buffer:
        # Pass on bytes that are not UTF-8: the generator raises PromptError for them.
        yield line.rstrip(b"\r\n").decode(errors="surrogateescape")


def _changed(sampling: SamplingConfig, words: list[str]) -> SamplingConfig:
    """Return the settings after /set NAME VALUE; for /set alone, show them and return them unchanged.

    Raise ConfigError for other words, an unknown name or a value out of range.
    """
    values = {name.replace("_", "-"): value for name, value in asdict(sampling).items()}
    if not words:
        _note(", ".join(f"{name} {value}" for name, value in values.items()))
        return sampling
    if len(words) != 2 or words[0] not in values:
        raise ConfigError(f"{_SET} {' '.join(words)}: expected {_SET} NAME VALUE, NAME one of {', '.join(values)}")
    name, text = words
    kind = type(values[name])
    try:
        value = kind(text)
    except ValueError as error:
        raise ConfigError(f"{_SET} {name} {text}: expected a number, like {values[name]}") from error
    return replace(sampling, **{name.replace("-", "_"): value})


def _shown(text: str) -> str:
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
