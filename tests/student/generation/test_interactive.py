"""teachonce-student generate: on a terminal, in a pipe, with one prompt, many or none."""

from __future__ import annotations

import builtins
import io
import os
import pty
import select
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from student import Generator, cli
from student.config import SamplingConfig
from student.errors import PromptError
from student.generation import generator as generator_module
from student.generation.interactive import converse, write_answer
from tests.places import ROOT

# Bytes in the order of their ids, which is that of the characters that a byte-level tokenizer writes them with.
PLAIN = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTES = PLAIN + [b for b in range(256) if b not in PLAIN]
SHORT = SamplingConfig(max_new_tokens=12)


class Screen(io.StringIO):
    """Standard output that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


class Keyboard(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    def put(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return put


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Screen]:
    """A terminal at which these lines are typed; KeyboardInterrupt is Ctrl-C, and at the end comes Ctrl-D."""

    def put(*typed: str | type[BaseException]) -> Screen:
        lines = iter([*typed, EOFError])

        def read(marker: str) -> str:
            sys.stdout.write(marker)
            line = next(lines)
            if isinstance(line, str):
                return line
            raise line

        screen = Screen()
        monkeypatch.setattr(sys, "stdin", Keyboard())
        monkeypatch.setattr(sys, "stdout", screen)
        monkeypatch.setattr(builtins, "input", read)
        return screen

    return put


def replay(monkeypatch: pytest.MonkeyPatch, text: str, error: type[BaseException] | None = None) -> None:
    """The student draws this text byte by byte, and then perhaps something happens."""
    ids = {b: i for i, b in enumerate(BYTES)}

    def draw(*args: object, **settings: object) -> Iterator[list[int]]:
        yield from ([ids[b]] for b in text.encode())
        if error:
            raise error

    monkeypatch.setattr(generator_module, "draw_tokens", draw)


def shown(text: str) -> str:
    """As a terminal may see it."""
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) != "Cc" else c.encode("unicode_escape").decode() for c in text
    )


def test_one_prompt_prints_its_continuation_and_a_line_break(
    generator: Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    write_answer(generator, "the", SHORT)
    assert capsys.readouterr().out == generator.generate("the", max_new_tokens=12) + "\n"


def test_candidates_are_lines_with_score_and_end_the_best_first(
    generator: Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    write_answer(generator, "the", SHORT, 3)
    found = generator.candidates("the", 3, max_new_tokens=12)
    assert capsys.readouterr().out == "".join(f"{c.score:9.4f}  {c.text!r} ({c.finish_reason})\n" for c in found)


def test_control_characters_are_shown_to_a_terminal_and_given_to_a_pipe(
    generator: Generator,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    drawn = "a\x1b[2J\r\x07\x9bé\t\n　"
    replay(monkeypatch, drawn)
    write_answer(generator, "the", SamplingConfig(max_new_tokens=30))
    assert capsys.readouterr().out == drawn + "\n"
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    write_answer(generator, "the", SamplingConfig(max_new_tokens=30))
    assert screen.getvalue() == "a\\x1b[2J\\r\\x07\\x9bé\t\n　\n"


def test_every_line_of_a_pipe_is_a_prompt_with_a_seed_of_its_own(
    generator: Generator, pipe: Callable[[bytes], None], capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = ["the teacher", "", "/set seed 5", "é 日本"]
    pipe("\n".join(prompts).encode())
    converse(generator, SHORT)
    texts = [generator.generate(p, max_new_tokens=12, seed=seed) for seed, p in enumerate(prompts)]
    assert capsys.readouterr() == ("".join(f"{text}\n\n" for text in texts), "")


def test_no_line_gives_no_answer(
    generator: Generator, pipe: Callable[[bytes], None], capsys: pytest.CaptureFixture[str]
) -> None:
    pipe(b"")
    converse(generator, SHORT)
    assert capsys.readouterr() == ("", "")


def test_a_line_of_a_pipe_that_is_no_text_ends_the_command_after_the_answers_before_it(
    generator: Generator, pipe: Callable[[bytes], None], capsys: pytest.CaptureFixture[str]
) -> None:
    pipe(b"the\r\na\xff\nb\n")
    with pytest.raises(PromptError):
        converse(generator, SHORT)
    assert capsys.readouterr().out == generator.generate("the", max_new_tokens=12) + "\n\n"


def test_of_prompts_too_long_the_end_is_continued_and_that_is_said_once(
    generator: Generator, pipe: Callable[[bytes], None], capsys: pytest.CaptureFixture[str]
) -> None:
    pipe(b"x" * 100 + b"\n" + b"y" * 52 + b"\n" + b"z" * 53 + b"\n")
    converse(generator, SHORT)
    out, err = capsys.readouterr()
    kept = ["x" * 52, "y" * 52, "z" * 52]
    texts = [generator.generate(p, max_new_tokens=12, seed=seed) for seed, p in enumerate(kept)]
    assert out == "".join(f"{text}\n\n" for text in texts)
    assert err.count("\n") == 1
    assert "context of 64 tokens" in err
    assert "last 52 tokens" in err


def test_ctrl_c_stops_the_answer_and_the_next_prompt_is_read(
    generator: Generator, terminal: Callable[..., Screen], monkeypatch: pytest.MonkeyPatch
) -> None:
    replay(monkeypatch, "abc", KeyboardInterrupt)
    screen = terminal("one", KeyboardInterrupt, "two")
    converse(generator, SHORT)
    assert screen.getvalue() == "> abc\n> \n> abc\n> \n"


def test_ctrl_c_ends_a_pipe(
    generator: Generator, pipe: Callable[[bytes], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    replay(monkeypatch, "abc", KeyboardInterrupt)
    pipe(b"one\ntwo\n")
    with pytest.raises(KeyboardInterrupt):
        converse(generator, SHORT)


@pytest.mark.parametrize("end", ["", "  "])
def test_an_empty_line_ends_on_a_terminal(generator: Generator, terminal: Callable[..., Screen], end: str) -> None:
    screen = terminal("the", end, "never read")
    converse(generator, SHORT)
    assert screen.getvalue() == f"> {shown(generator.generate('the', max_new_tokens=12))}\n\n> "


def test_settings_are_changed_and_mistakes_are_answered(
    generator: Generator, terminal: Callable[..., Screen], capsys: pytest.CaptureFixture[str]
) -> None:
    screen = terminal(
        "/set temperature 1.5", "/set seed 7", "/set max-new-tokens 9", "/set", "/set seed", "/set colour 3",
        "/set seed 1.5", "/set top-p 2", "/set temperature nan", "the", "/setting", "a\udcff",
    )  # fmt: skip
    converse(generator, SHORT)
    settings = {"temperature": 1.5, "max_new_tokens": 9}
    answers = [
        shown(generator.generate(prompt, seed=seed, **settings)) for prompt, seed in (("the", 7), ("/setting", 8))
    ]
    assert screen.getvalue() == "> " * 10 + f"{answers[0]}\n\n> {answers[1]}\n\n> > \n"
    notes = capsys.readouterr().err.splitlines()[3:]
    assert notes[0] == "max-new-tokens 9, temperature 1.5, top-p 0.95, seed 7"
    assert [note.split(":")[0] for note in notes[1:4]] == ["/set seed", "/set colour 3", "/set seed 1.5"]
    assert "--top-p is 2.0" in notes[4]
    assert "--temperature is nan" in notes[5]
    assert "no Unicode" in notes[6]
    assert len(notes) == 7


def test_candidates_of_prompts_after_each_other_are_other_draws(
    generator: Generator, terminal: Callable[..., Screen]
) -> None:
    screen = terminal("the", "the")
    converse(generator, SHORT, 2)
    first, second = ({c.text for c in generator.candidates("the", 2, seed=s, max_new_tokens=12)} for s in (0, 2))
    assert first.isdisjoint(second)
    for text in first | second:
        assert repr(text) in screen.getvalue()


def test_either_a_prompt_or_interactive(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in ([], ["--prompt", "x", "--interactive"]):
        monkeypatch.setattr(sys, "argv", ["teachonce-student", "generate", str(saved), *arguments])
        with pytest.raises(SystemExit) as done:
            cli.main()
        assert done.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


SLOW = """
import sys, time
from student import cli
from student.generation import generator
def draw(*args, **settings):
    while True:
        time.sleep(0.05)
        yield [64]
generator.draw_tokens = draw
sys.argv = ["teachonce-student", "generate", sys.argv[1], "--interactive", "--max-new-tokens", "60", "--device", "cpu"]
cli.main()
"""


def test_a_real_terminal_stops_an_answer_by_ctrl_c_and_ends_by_ctrl_d(saved: Path) -> None:
    """The answer would be 60 characters long and the session three seconds."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(saved)],
        cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        preexec_fn=_take_terminal,
    )  # fmt: skip
    os.close(theirs)
    _read_until(ours, b"> ")
    os.write(ours, b"the teacher\r")
    _read_until(ours, b"teacher\r\n", b"aaa")
    os.write(ours, b"\x03")
    seen = _read_until(ours, b"> ")
    assert b"a" * 50 not in seen
    os.write(ours, b"\x04")
    assert process.wait(timeout=60) == 0
    os.close(ours)


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _read_until(descriptor: int, *wanted: bytes) -> bytes:
    """What a terminal shows until all that is wanted has come in this order."""
    seen = b""
    for text in wanted:
        start = len(seen)
        while text not in seen[start:]:
            assert select.select([descriptor], [], [], 60)[0], seen
            seen += os.read(descriptor, 1024)
    return seen
