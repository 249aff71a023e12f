"""A file of conversations becomes a cache of what the assistant says, with the teacher's numbers for the whole."""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoTokenizer, GPT2LMHeadModel

from pipeline import PrecomputeConfig, SoftTargetsConfig, run
from pipeline.errors import BadRowError, ChatTemplateError, ColumnError
from pipeline.estimate import render_plan
from pipeline.run import plan_only
from storage import Cache, verify_cache
from storage.errors import CacheMismatchError
from storage.rows import beams, samples, soft_targets
from tests.precomputed import precomputed

EOS = 256
TEMPLATE = (
    "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)
DATED = "{{ strftime_now('%Y-%m-%d') }}" + TEMPLATE
Configure = Callable[..., PrecomputeConfig]


def conversations(num: int) -> list[list[dict[str, str]]]:
    rng = np.random.default_rng(0)
    words = ["who", "did", "it", "the", "old", "she"]

    def say(role: str) -> dict[str, str]:
        return {"role": role, "content": " ".join(rng.choice(words, 2))}

    return [[say("user"), say("assistant")] * int(rng.integers(1, 3)) for _ in range(num)]


@pytest.fixture(scope="module")
def chatty_teacher(helpers: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = helpers.make_teacher(tmp_path_factory.mktemp("teacher") / "chatty")
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    return directory


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in conversations(60)))
    return path


@pytest.fixture(scope="module")
def configure_chats(configure: Configure, chatty_teacher: Path, chats: Path) -> Configure:
    def make(out: Path, **changes: Any) -> PrecomputeConfig:
        settings: dict[str, Any] = {
            "teacher": str(chatty_teacher), "data": str(chats), "document_separator": None, "block_size": 62,
            "messages_column": "messages",
            "soft_targets": SoftTargetsConfig(top_k=4, tail_weight=0.05, mantissa_bits=10),
        }  # fmt: skip
        return configure(out, **(settings | changes))

    return make


@pytest.fixture(scope="module")
def chat_cache(configure_chats: Configure, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return precomputed(configure_chats(tmp_path_factory.mktemp("chats") / "cache"))


@torch.inference_mode()
def logprobs_of(teacher: Path, ids: list[int]) -> np.ndarray:
    """The plain truth: float64 log-probabilities [num_tokens, V] after each token of a whole conversation."""
    model = GPT2LMHeadModel.from_pretrained(teacher).double().eval()
    return torch.log_softmax(model(torch.tensor([ids])).logits[0], dim=1).numpy()


def test_wanted_targets_are_the_teachers_on_the_whole_conversation(
    chat_cache: Cache, chatty_teacher: Path, chats: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(chatty_teacher)
    truth: dict[tuple[int, ...], tuple[list[bool], np.ndarray]] = {}
    for line in chats.read_text().splitlines():
        ids, flags = [], []
        for message in json.loads(line)["messages"]:
            is_said = message["role"] == "assistant"
            for part, flag in ((f"<{message['role'][0]}>", False), (f"{message['content']}\n", is_said)):
                ids += tokenizer(part)["input_ids"]
                flags += [flag] * (len(ids) - len(flags))
        truth[tuple(ids)] = (flags, logprobs_of(chatty_teacher, ids))
    num_seen = num_wanted = 0
    for split in ("train", "validation"):
        for batch in chat_cache.record_batches("soft_targets", split):
            rows = soft_targets.decode(batch)
            head = np.concatenate([[0], np.cumsum(rows.head_size.reshape(-1))])
            entries = np.concatenate([[0], np.cumsum((rows.head_size + rows.tail_size).reshape(-1))])
            for r, lengths in enumerate(rows.segment_lengths):
                start = 0
                for length in lengths:
                    ids = rows.input_ids[r, start : start + length].tolist()
                    whole = tuple(ids[: len(ids) - ids[::-1].index(tokenizer("\n")["input_ids"][0])])
                    flags, logprobs = truth[whole]  # no conversation is cut: all fit into a block
                    assert set(ids[len(whole) :]) <= {EOS}
                    num_seen += 1
                    for t in range(1, length):
                        place, target = start + t - 1, r * rows.head_size.shape[1] + start + t - 1
                        is_wanted = t < len(whole) and flags[t]
                        assert rows.is_wanted is not None
                        assert rows.is_wanted[r, place] == is_wanted
                        if not is_wanted:
                            assert rows.head_size[r, place] == rows.tail_size[r, place] == rows.entropy[r, place] == 0
                            continue
                        num_wanted += 1
                        p = logprobs[t - 1]
                        assert rows.label_logprob[r, place] == pytest.approx(p[ids[t]], rel=2e-3)
                        assert rows.entropy[r, place] == pytest.approx(-(np.exp(p) * p).sum(), rel=2e-3)
                        kept = rows.ids[entries[target] : entries[target] + rows.head_size[r, place]]
                        stored = rows.logprobs[head[target] : head[target + 1]]
                        np.testing.assert_allclose(stored.astype(float), p[kept], rtol=2e-3)
                    start += length
    assert num_seen == 60
    shards = [shard for split in ("train", "validation") for shard in chat_cache.shards("soft_targets", split)]
    assert sum(shard.num_targets for shard in shards) == num_wanted > 500
    assert verify_cache(chat_cache.path).problems == ()


def test_samples_and_beams_continue_questions(chat_cache: Cache, chatty_teacher: Path, chats: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(chatty_teacher)
    questions = {
        tuple(
            tokenizer.apply_chat_template(
                json.loads(line)["messages"][:-1], add_generation_prompt=True, return_dict=False
            )
        )
        for line in chats.read_text().splitlines()
    }
    sampled = [row for batch in chat_cache.record_batches("samples", "train") for row in samples.decode(batch)]
    searched = [row for batch in chat_cache.record_batches("beams", "train") for row in beams.decode(batch)]
    assert sampled
    assert searched
    assert {tuple(row.prompt_ids.tolist()) for row in (*sampled, *searched)} <= questions


def test_parquet_gives_the_same_rows(configure_chats: Configure, chat_cache: Cache, tmp_path: Path) -> None:
    table = pa.Table.from_pylist([{"id": i, "messages": chat} for i, chat in enumerate(conversations(60))])
    pq.write_table(table, tmp_path / "chats.parquet")
    again = precomputed(configure_chats(tmp_path / "cache", data=str(tmp_path / "chats.parquet")))
    assert again.rows_sha256 == chat_cache.rows_sha256


def test_the_template_travels_with_the_cache(chat_cache: Cache) -> None:
    assert AutoTokenizer.from_pretrained(chat_cache.tokenizer_dir).chat_template == TEMPLATE
    assert chat_cache.identity.config["messages_column"] == "messages"
    assert "num_bad_rows" not in chat_cache.identity.data
    assert "chat_date" not in chat_cache.identity.data


def test_another_template_is_another_cache(configure_chats: Configure, chat_cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "other.jinja").write_text(TEMPLATE.replace("\n", "!"))
    config = configure_chats(chat_cache.path, chat_template=tmp_path / "other.jinja")
    with pytest.raises(CacheMismatchError, match="chat_template_sha256"):
        precomputed(config)
    other = precomputed(dataclasses.replace(config, out=tmp_path / "cache"))
    assert AutoTokenizer.from_pretrained(other.tokenizer_dir).chat_template == TEMPLATE.replace("\n", "!")


def test_a_template_that_prints_the_date(
    configure_chats: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dated.jinja").write_text(DATED)

    def on(day: str) -> None:
        class Date(datetime.date):
            @classmethod
            def today(cls) -> datetime.date:
                return datetime.date.fromisoformat(day)

        monkeypatch.setattr(run.datetime, "date", Date)

    settings = {"chat_template": tmp_path / "dated.jinja", "kinds": ("soft_targets",), "block_size": 63}
    config = configure_chats(tmp_path / "cache", **settings)
    on("2026-12-31")
    first = precomputed(config)
    assert first.identity.data["chat_date"] == "2026-12-31"
    (batch, *_) = first.record_batches("soft_targets", "train")
    text = AutoTokenizer.from_pretrained(first.tokenizer_dir).decode(soft_targets.decode(batch).input_ids[0])
    assert text.startswith("2026-12-31<u>")
    on("2027-01-01")  # a run that goes on, or another one with the flag
    (first.path / "manifest.json").unlink()
    shutil.rmtree(first.path / "soft_targets")
    assert precomputed(config).rows_sha256 == first.rows_sha256
    assert "nothing was written" in plan_only(config, render_plan)
    given = precomputed(configure_chats(tmp_path / "given", chat_date="2026-12-31", **settings))
    assert given.rows_sha256 == first.rows_sha256
    with pytest.raises(CacheMismatchError, match="chat_date"):
        precomputed(dataclasses.replace(config, chat_date="2027-01-01"))


def test_bad_rows(
    configure_chats: Configure, chats: Path, chat_cache: Cache, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "chats.jsonl"
    bad = json.dumps({"messages": [{"role": "user", "content": None}]}) + "\n"
    data.write_text(chats.read_text() + bad * 3)
    config = configure_chats(tmp_path / "cache", data=str(data))
    with pytest.raises(
        BadRowError, match=re.escape(f"--data {data}: row 61, column 'messages': message 1 has nothing")
    ):
        precomputed(config)
    assert not (tmp_path / "cache").exists()
    skipping = dataclasses.replace(config, on_bad_row="skip")
    assert "bad rows skipped: 3" in plan_only(skipping, render_plan)
    cache = precomputed(skipping)
    assert "bad rows skipped: 3" in capsys.readouterr().err
    assert cache.rows_sha256 == chat_cache.rows_sha256
    assert cache.identity.data["num_bad_rows"] == 3
    assert cache.identity.config["on_bad_row"] == "skip"


def test_a_mistyped_column_is_named_beside_all_there_are(configure_chats: Configure, tmp_path: Path) -> None:
    with pytest.raises(ColumnError, match=r"'mesages': not among \['messages'\]; name the right one with --messages-"):
        precomputed(configure_chats(tmp_path / "cache", messages_column="mesages"))


def test_several_templates(
    configure_chats: Configure, configure: Configure, chat_cache: Cache, chatty_teacher: Path, tmp_path: Path
) -> None:
    several = shutil.copytree(chatty_teacher, tmp_path / "several")
    (several / "additional_chat_templates").mkdir()
    (several / "additional_chat_templates" / "rag.jinja").write_text("x")
    assert precomputed(configure_chats(tmp_path / "cache", teacher=str(several))).rows_sha256 == chat_cache.rows_sha256
    (several / "chat_template.jinja").unlink()
    (several / "additional_chat_templates" / "tool_use.jinja").write_text("y")
    config = configure_chats(tmp_path / "none", teacher=str(several))
    with pytest.raises(ChatTemplateError, match=r"several chat templates, \['rag', 'tool_use'\], and no 'default'"):
        precomputed(config)
    plain = tmp_path / "plain.txt"
    plain.write_text("the student learns alone " * 40)
    cache = precomputed(configure(tmp_path / "plain", teacher=str(several), data=str(plain)))
    assert AutoTokenizer.from_pretrained(cache.tokenizer_dir).chat_template == {"rag": "x", "tool_use": "y"}
