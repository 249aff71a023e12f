"""What `teachonce-cache import` and `export` print."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from storage.cli import main
from tests.storage.importing.dumps import MadeUpTeacher, vllm_row, write_lines


def test_import_and_export_say_what_they_did(
    made_up: MadeUpTeacher,
    tokenizer_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(*arguments: object) -> tuple[str, list[str]]:
        monkeypatch.setattr(sys, "argv", ["teachonce-cache", *map(str, arguments), "--quiet"])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 0
        said = capsys.readouterr()
        return said.out, said.err.splitlines()

    dump = write_lines(tmp_path / "dump.jsonl", [vllm_row(made_up, made_up.text(9, n), 3) for n in range(4)])
    cache, lists = tmp_path / "cache", tmp_path / "lists"
    out, err = run("import", dump, "--format", "topk-jsonl", "--tokenizer", tokenizer_dir, "--out", cache)
    assert out == f"{cache}: imported 4 texts, 32 targets of at most 4 ids: 2 shards, 4 rows\n"
    assert err == [f"{dump}: does not state the teacher's entropy: the cache says so"]
    out, err = run("export", cache, "--out", lists)
    assert out == f"{lists}: 32 targets as topk-parquet\n"
    assert err[0].startswith(f"{lists}: lost: the rest of each distribution, 0.")
    assert len(err) == 1
