"""Answers of vLLM and of OpenAI-compatible servers become targets: held against the made-up teacher's own numbers."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storage import verify_cache
from storage.importing.errors import ImportRowError, MisalignedRowError, UnknownTokenError
from tests.storage.importing.conftest import Import
from tests.storage.importing.dumps import (
    MadeUpTeacher,
    TextOf,
    chat_logprobs,
    completion_logprobs,
    vllm_row,
    write_lines,
)
from tests.storage.importing.truth import check_text, stored

TOP_K = 4


def as_id(token_id: int) -> str:
    return f"token_id:{token_id}"


def test_prompt_logprobs_of_vllm(imported: Import, made_up: MadeUpTeacher, text_of: TextOf, tmp_path: Path) -> None:
    texts = [made_up.text(3 + n, n) for n in range(12)]
    path = write_lines(tmp_path / "dump.jsonl", (vllm_row(made_up, ids, TOP_K, text_of) for ids in texts))
    cache = imported(path, "topk-jsonl")
    assert not verify_cache(cache.path).problems
    assert (cache.identity.block_size, cache.identity.vocab_size) == (13, 257)
    assert cache.identity.unknown_columns == ("entropy",)
    found = {tuple(text["ids"]): text for text in stored(cache)}
    assert len(found) == len(texts)
    for ids in texts:
        assert all(found[tuple(ids)]["targets"]), "every target but the first token's is taught"
        check_text(found[tuple(ids)], made_up, ids, TOP_K, with_label=True)
    perplexity = cache.manifest.teacher_perplexity("train")
    assert perplexity is not None
    assert perplexity > 1
    assert cache.manifest.teacher_entropy_nats("train") is None


def as_server(row: dict[str, Any]) -> dict[str, Any]:
    """/v1/completions: what is about the prompt stands in the choice."""
    return {"object": "text_completion", "choices": [{"index": 0, "text": "", "logprobs": None} | row]}


def as_batch(row: dict[str, Any]) -> dict[str, Any]:
    return {"custom_id": "1", "response": {"status_code": 200, "body": as_server(row)}, "error": None}


@pytest.mark.parametrize("wrap", [as_server, as_batch])
def test_the_same_row_as_a_server_and_as_a_batch_answers(
    imported: Import, made_up: MadeUpTeacher, tmp_path: Path, wrap: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    row = vllm_row(made_up, made_up.text(9, 0), TOP_K)
    plain = imported(write_lines(tmp_path / "plain.jsonl", [row]), "topk-jsonl")
    wrapped = imported(write_lines(tmp_path / "wrapped.jsonl", [wrap(row)]), "topk-jsonl", out=tmp_path / "wrapped")
    assert wrapped.rows_sha256 == plain.rows_sha256


def test_an_echoed_completion_with_tokens_as_ids(imported: Import, made_up: MadeUpTeacher, tmp_path: Path) -> None:
    ids = made_up.text(9, 0)
    row = {"choices": [{"text": "…", "logprobs": completion_logprobs(made_up, ids, TOP_K, as_id)}]}
    (found,) = stored(imported(write_lines(tmp_path / "dump.jsonl", [row]), "topk-jsonl"))
    check_text(found, made_up, ids, TOP_K, with_label=True)
    assert all(found["targets"])


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_a_continuation_is_taught_and_its_prompt_is_only_read(
    imported: Import, made_up: MadeUpTeacher, tmp_path: Path, kind: str
) -> None:
    ids, num_before = made_up.text(11, 3), 5
    make = {"chat": chat_logprobs, "completion": completion_logprobs}[kind]
    logprobs = make(made_up, ids, TOP_K, as_id, num_before=num_before)
    row = {"prompt_token_ids": ids[:num_before], "choices": [{"message": {"content": "…"}, "logprobs": logprobs}]}
    (found,) = stored(imported(write_lines(tmp_path / "dump.jsonl", [row]), "topk-jsonl"))
    check_text(found, made_up, ids, TOP_K, with_label=True)
    assert [target is not None for target in found["targets"]] == [t + 1 >= num_before for t in range(len(ids) - 1)]


def test_a_prompt_and_its_continuation_from_vllm_s_own_outputs(
    imported: Import, made_up: MadeUpTeacher, tmp_path: Path
) -> None:
    ids = made_up.text(10, 4)
    whole = vllm_row(made_up, ids, TOP_K)
    row = {
        "prompt_token_ids": ids[:6],
        "prompt_logprobs": whole["prompt_logprobs"][:6],
        "outputs": [{"index": 0, "token_ids": ids[6:], "logprobs": whole["prompt_logprobs"][6:]}],
    }
    (found,) = stored(imported(write_lines(tmp_path / "dump.jsonl", [row]), "topk-jsonl"))
    check_text(found, made_up, ids, TOP_K, with_label=True)
    assert all(found["targets"])


def test_tokens_by_their_text(imported: Import, tmp_path: Path, text_of: TextOf) -> None:
    letters = {text_of(i): i for i in range(257)}
    logprobs = {
        "tokens": ["a", "b", "c"],
        "token_logprobs": [None, -0.5, -2.0],
        "top_logprobs": [None, {"b": -0.5, " ": -1.5}, {"x": -0.25}],
    }
    cache = imported(write_lines(tmp_path / "dump.jsonl", [{"logprobs": logprobs}]), "topk-jsonl")
    (found,) = stored(cache)
    assert found["ids"] == [letters["a"], letters["b"], letters["c"]]
    assert [target["head"] for target in found["targets"]] == [
        {letters["b"]: -0.5, letters[" "]: -1.5},
        {letters["c"]: -2.0, letters["x"]: -0.25},
    ]
    assert [target["label"] for target in found["targets"]] == [-0.5, -2.0]


@pytest.mark.parametrize(("token", "why"), [("\ufffd", "ids .* and .* have the text"), ("ab", "no single id has")])
def test_a_text_that_stands_for_no_single_id_is_refused(imported: Import, tmp_path: Path, token: str, why: str) -> None:
    logprobs = {"tokens": ["a", token], "token_logprobs": [None, -0.5], "top_logprobs": [None, {}]}
    path = write_lines(tmp_path / "dump.jsonl", [{"logprobs": logprobs}])
    with pytest.raises(UnknownTokenError, match=rf"dump\.jsonl, line 1, token 1: {why}.*return_tokens_as_token_ids"):
        imported(path, "topk-jsonl")


def test_a_continuation_without_its_prompt_is_refused(imported: Import, made_up: MadeUpTeacher, tmp_path: Path) -> None:
    logprobs = chat_logprobs(made_up, made_up.text(8, 0), TOP_K, as_id, num_before=4)
    path = write_lines(tmp_path / "dump.jsonl", [{"choices": [{"logprobs": logprobs}]}])
    with pytest.raises(ImportRowError, match=r"line 1: .* no prompt, on which they depend; expected prompt_token_ids"):
        imported(path, "topk-jsonl")


def test_a_prompt_as_text_is_tokenized(
    imported: Import, made_up: MadeUpTeacher, text_of: TextOf, tmp_path: Path
) -> None:
    letters = {text_of(i): i for i in range(257)}
    ids = [letters["h"], letters["i"], *made_up.text(4, 0)]
    row = {"prompt": "hi", "choices": [{"logprobs": completion_logprobs(made_up, ids, TOP_K, as_id, num_before=2)}]}
    (found,) = stored(imported(write_lines(tmp_path / "dump.jsonl", [row]), "topk-jsonl"))
    check_text(found, made_up, ids, TOP_K, with_label=True)


def test_a_compressed_file(imported: Import, made_up: MadeUpTeacher, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "dump.jsonl", [vllm_row(made_up, made_up.text(7, 0), TOP_K)])
    (tmp_path / "dump.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    plain = imported(path, "topk-jsonl")
    assert imported(tmp_path / "dump.jsonl.gz", "topk-jsonl", out=tmp_path / "gz").rows_sha256 == plain.rows_sha256


def test_ids_of_another_tokenizer_are_told_by_their_text(
    imported: Import, made_up: MadeUpTeacher, text_of: TextOf, tmp_path: Path
) -> None:
    row = vllm_row(made_up, [40, 50, 60], TOP_K, lambda i: text_of(i + 1))
    path = write_lines(tmp_path / "dump.jsonl", [row])
    with pytest.raises(
        MisalignedRowError, match=r"prompt_logprobs 1: id 50 is .* there and .* name the teacher's token"
    ):
        imported(path, "topk-jsonl")
