"""What a command says when it is stopped."""

from __future__ import annotations

import io
import sys

import pytest

from storage.command import run_command


def stop() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("world_size", "has_line"), [(None, True), ("", True), ("1", True), ("2", False)])
def test_the_line_that_goes_on_is_one_that_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], world_size: str | None, has_line: bool
) -> None:
    """Of several processes, which a launcher started, none knows the launcher's line."""
    monkeypatch.setattr(sys, "argv", ["/bin/teachonce-student", "train", "a cache"])
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if world_size is not None:
        monkeypatch.setenv("WORLD_SIZE", world_size)
    with pytest.raises(SystemExit) as stopped:
        run_command(stop)
    assert stopped.value.code == 130
    said = capsys.readouterr().err
    assert "teachonce-student: stopped; to go on, run the same line again" in said
    assert ("teachonce-student train 'a cache'" in said) is has_line


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_any_text_can_be_printed_on_any_terminal(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    text = "é 漢 🙂 \udcff ± −"
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict") for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])

    def main() -> int:
        print(text)
        print(text, file=sys.stderr)
        return 0

    with pytest.raises(SystemExit) as done:
        run_command(main)
    assert done.value.code == 0
    for stream in streams:
        stream.flush()
        shown = stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
        assert shown == text.encode(encoding, errors="backslashreplace").decode(encoding) + "\n"


def test_typed_bytes_that_are_no_text_reach_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a \xff\n"), encoding="utf-8"))
    typed: list[str] = []
    with pytest.raises(SystemExit):
        run_command(lambda: typed.append(input()))
    assert typed == ["a \udcff"]


@pytest.mark.parametrize(("argument", "is_told"), [("/data/\udcff", True), ("/data/é", False)])
def test_an_argument_that_a_library_cannot_take_is_named(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], argument: str, is_told: bool
) -> None:
    """Libraries in Rust take paths in UTF-8 alone. Where no argument is to blame, the error is a bug."""
    monkeypatch.setattr(sys, "argv", ["teachonce-precompute", "--out", argument])

    def main() -> None:
        "/data/\udcff/tokenizer.json".encode()

    if not is_told:
        with pytest.raises(UnicodeEncodeError):
            run_command(main)
        return
    with pytest.raises(SystemExit) as done:
        run_command(main)
    assert done.value.code == 2
    assert capfd.readouterr().err == (
        "teachonce-precompute: error: /data/\\udcff: is not UTF-8; expected a name or text in UTF-8\n"
    )
