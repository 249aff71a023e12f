from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from storage import open_cache
from storage.cli import main
from storage.errors import TeachonceError
from storage.reading.cache import Cache
from storage.rows.kinds import KINDS

Run = Callable[..., SimpleNamespace]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run teachonce-cache in this process: exit code, standard output, lines of standard error."""

    def run_main(*arguments: object) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["teachonce-cache", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        return SimpleNamespace(code=stopped.value.code, out=captured.out, err=captured.err.splitlines())

    return run_main


@pytest.fixture
def own_cache(cache: Cache, tmp_path: Path) -> Path:
    """A copy of the real cache, tokenizer and all, that the test may damage."""
    return Path(shutil.copytree(cache.path, tmp_path / "cache"))


def test_inspect_prints_what_is_in_a_cache(run: Run, cache: Cache) -> None:
    done = run("inspect", cache.path)
    assert (done.code, done.err) == (0, [])
    assert "GPT2LMHeadModel" in done.out
    assert "257 entries, blocks of 32 targets" in done.out
    settings = cache.identity.config["soft_targets"]
    made = f"the top {settings['top_k']} and draws of weight {settings['tail_weight']:g} at temperature 1"
    assert f"targets    {made}; losses at temperature 1" in done.out
    for kind in KINDS:
        assert f"{kind} train" in done.out


def test_inspect_json_adds_up(run: Run, cache: Cache) -> None:
    done = run("inspect", cache.path, "--json")
    assert (done.code, done.err) == (0, [])
    summary = json.loads(done.out)
    assert set(summary["kinds"]) == set(KINDS)
    for kind in KINDS:
        shards = cache.manifest.shards_of(kind, "train")
        totals = summary["kinds"][kind]["train"]
        assert totals["num_rows"] == sum(shard.num_rows for shard in shards)
        assert totals["shard_bytes"] == sum((cache.path / shard.path).stat().st_size for shard in shards)
        assert totals["bytes_per_token"] == pytest.approx(totals["shard_bytes"] / totals["num_tokens"], abs=0.01)
    assert summary["teacher_perplexity"]["train"] == pytest.approx(cache.manifest.teacher_perplexity("train"))
    assert summary["vocab_size"] == 257


def test_verify_says_that_a_whole_cache_is_whole(run: Run, cache: Cache) -> None:
    done = run("verify", cache.path, "--quiet")
    assert (done.code, done.err) == (0, [])
    assert "whole: 10 shards" in done.out


@pytest.mark.parametrize("kind", KINDS)
def test_verify_names_each_damaged_shard_on_one_line(run: Run, own_cache: Path, kind: str) -> None:
    (path,) = own_cache.glob(f"{kind}/validation-00000-of-*.arrow")
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    done = run("verify", own_cache, "--quiet")
    assert (done.code, done.out) == (2, "")
    (line,) = done.err
    assert line.startswith("teachonce-cache: ")
    assert str(path) in line


def test_verify_prints_one_line_per_problem(run: Run, own_cache: Path) -> None:
    (own_cache / "README.md").write_text("other")
    (own_cache / "tokenizer" / "tokenizer.json").unlink()
    (own_cache / "commits" / "samples-train-00000.json").unlink()
    done = run("verify", own_cache, "--quiet")
    assert done.code == 2
    assert [name in line for name, line in zip(("samples", "README", "tokenizer"), done.err, strict=True)] == [True] * 3


def test_verify_of_a_url_names_it_and_keeps_nothing(
    run: Run, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    done = run("verify", f"file://{cache.path}", "--quiet")
    assert (done.code, done.err) == (0, [])
    assert done.out.startswith(f"file://{cache.path}: whole: 10 shards")
    assert list(tmp_path.iterdir()) == []


def test_verify_with_no_job_is_one_line(run: Run, cache: Cache) -> None:
    done = run("verify", cache.path, "--jobs", "0")
    assert done.code == 2
    assert done.err[-1] == "teachonce-cache: error: --jobs 0: expected 1 or more"


def test_verify_reports_progress_without_a_terminal(run: Run, cache: Cache) -> None:
    done = run("verify", cache.path)
    assert done.code == 0
    assert any(line.startswith("verify: ") for line in done.err)


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("kind", KINDS)
def test_head_shows_rows_of_each_kind(run: Run, cache: Cache, kind: str, split: str) -> None:
    done = run("head", cache.path, "--kind", kind, "--split", split, "--num-rows", "3")
    assert (done.code, done.err) == (0, [])
    assert [f"row {row}" in done.out for row in range(4)] == [True, True, True, False]


def test_head_shows_the_text_and_probabilities_that_are_stored(run: Run, cache: Cache) -> None:
    from storage.rows import soft_targets

    rows = soft_targets.decode(next(cache.record_batches("soft_targets", "train")))
    done = run("head", cache.path, "--num-rows", "1")
    assert f"{float(rows.entropy[0, 0]):.2f} nats" in done.out.splitlines()[1]
    assert f"in {rows.tail_size[0, 0]} draws" in done.out.splitlines()[1]


def test_head_across_record_batches_and_beyond_the_end(run: Run, cache: Cache) -> None:
    done = run("head", cache.path, "--kind", "samples", "--num-rows", "1000")
    num_rows = cache.num_rows("samples", "train")
    assert num_rows > cache.identity.record_batch_rows
    assert sum(line.startswith("row ") for line in done.out.splitlines()) == num_rows


def test_head_of_a_cache_without_a_tokenizer_shows_ids(run: Run, small_cache: Path) -> None:
    done = run("head", small_cache, "--kind", "samples", "--num-rows", "1")
    assert done.code == 0
    assert "row 0, prompt 0" in done.out


@pytest.mark.parametrize("num_rows", [0, -1])
def test_head_of_no_rows_is_no_crash(run: Run, small_cache: Path, num_rows: int) -> None:
    done = run("head", small_cache, "--num-rows", num_rows)
    assert done.out == ""
    assert len(done.err) == {0: 0, 2: 1}[done.code]


def test_head_of_rows_that_are_not_there_is_one_line(run: Run, small_cache: Path) -> None:
    done = run("head", small_cache, "--kind", "samples", "--split", "validation")
    assert (done.code, done.out) == (2, "")
    assert len(done.err) == 1
    assert "--kinds samples" in done.err[0]


@pytest.mark.parametrize("content", [b"", b"{}", b"not json", b'{"model": 1}'])
def test_head_does_not_trust_a_damaged_tokenizer(run: Run, own_cache: Path, content: bytes) -> None:
    (own_cache / "tokenizer" / "tokenizer.json").write_bytes(content)
    done = run("head", own_cache)
    assert done.code == 2
    assert len(done.err) == 1
    assert "tokenizer.json" in done.err[0]


@pytest.mark.parametrize("command", ["inspect", "verify", "head"])
def test_a_missing_cache_is_one_line(run: Run, tmp_path: Path, command: str) -> None:
    done = run(command, tmp_path / "nowhere")
    assert (done.code, done.out) == (2, "")
    (line,) = done.err
    assert line.startswith("teachonce-cache: error: ")
    assert "no cache here" in line


@pytest.mark.parametrize(
    "arguments",
    ["pack URL OUT", "pack CACHE URL", "unpack URL OUT", "push URL file:///x", "pull file:///x URL",
     "merge CACHE URL --out OUT", "merge CACHE CACHE --out URL", "compact CACHE --out URL", "report CACHE --out URL"],
)  # fmt: skip
def test_a_url_where_a_path_is_expected_is_one_line(
    run: Run, small_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str
) -> None:
    monkeypatch.chdir(tmp_path)
    words = {"URL": "s3://bucket/cache", "CACHE": small_cache, "OUT": tmp_path / "out"}
    before = sorted(tmp_path.iterdir())
    done = run(*(words.get(word, word) for word in arguments.split()))
    assert (done.code, done.out) == (2, "")
    (line,) = done.err
    assert "s3:/bucket/cache: looks like a URL" in line
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("command", ["inspect", "verify", "head"])
def test_an_unfinished_or_damaged_cache_is_one_line(run: Run, small_cache: Path, command: str) -> None:
    manifest = (small_cache / "manifest.json").read_bytes()
    (small_cache / "manifest.json").write_bytes(manifest[:-100])
    done = run(command, small_cache)
    assert (done.code, len(done.err)) == (2, 1)
    assert "manifest.json" in done.err[0]
    (small_cache / "manifest.json").unlink()
    done = run(command, small_cache)
    assert (done.code, len(done.err)) == (2, 1)
    assert "8 of 8 shards" in done.err[0]


def test_an_error_of_several_lines_is_printed_as_one(
    run: Run, small_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> None:
        raise TeachonceError(f"{path}: first\n   second")

    monkeypatch.setattr("storage.cli.open_cache", fail)
    done = run("inspect", small_cache)
    assert (done.code, done.err) == (2, [f"teachonce-cache: error: {small_cache}: first second"])


def test_control_characters_of_a_stranger_do_not_reach_the_terminal(
    run: Run, small_cache: Path, forge: SimpleNamespace
) -> None:
    forge.identity(small_cache, lambda content: content["teacher"].update(id="nice\x1b[2J\x1b]0;pwned\x07"))
    done = run("inspect", small_cache)
    assert "\x1b" not in done.out + "".join(done.err)


@pytest.mark.parametrize("arguments", [(), ("frobnicate",), ("inspect",), ("head", "x", "--kind", "logits")])
def test_a_wrong_command_line_exits_with_two(run: Run, arguments: tuple[str, ...]) -> None:
    assert run(*arguments).code == 2


def test_help_names_every_command(run: Run) -> None:
    done = run("--help")
    assert done.code == 0
    for command in ("inspect", "verify", "head"):
        assert command in done.out


def test_ctrl_c_prints_the_line_that_goes_on(run: Run, small_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("storage.cli.open_cache", interrupt)
    done = run("inspect", small_cache)
    assert done.code == 130
    assert done.err[-1].strip() == f"teachonce-cache inspect {small_cache}"


def test_compact_tells_of_shards_that_were_there(run: Run, own_cache: Path, tmp_path: Path) -> None:
    line = "compact", own_cache, "--out", tmp_path / "out"
    first, again = run(*line), run(*line, "--zstd-level", "1")
    assert (first.code, again.code) == (0, 0)
    num_shards = len(open_cache(own_cache).manifest.shards)
    assert "were there" not in first.out
    assert again.out == first.out.rstrip() + f"; {num_shards} of {num_shards} shards were there and stay as they were\n"
    assert any("done before" in line for line in again.err)
