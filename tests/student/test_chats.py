"""A student of conversations: it learns and is measured on what the assistant says, and is asked as it was taught."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from transformers import AutoTokenizer

from student import EvaluateConfig, Generator, TrainConfig, evaluate, train
from tests.precomputed import precomputed

TEMPLATE = (
    "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


@pytest.mark.parametrize("kinds", [("soft_targets",), ("soft_targets", "samples", "beams")])
def test_from_a_chat_file_to_an_answer(
    helpers: ModuleType, train_config: Callable[..., TrainConfig], tmp_path: Path, kinds: tuple[str, ...]
) -> None:
    teacher = helpers.make_teacher(tmp_path / "teacher")
    (teacher / "chat_template.jinja").write_text(TEMPLATE)
    chats = [
        [{"role": "user", "content": f"who {i}?"}, {"role": "assistant", "content": "she " * (1 + i % 3)}]
        for i in range(80)
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    config = helpers.tiny_config(
        teacher, tmp_path / "chats.jsonl", tmp_path / "cache", messages_column="messages", document_separator=None,
        kinds=kinds,
    )  # fmt: skip
    cache = precomputed(config)
    num_said = sum(len(chat[1]["content"]) + 1 for chat in chats)  # a token is a byte; the newline ends a turn
    shards = [shard for split in ("train", "validation") for shard in cache.shards("soft_targets", split)]
    assert sum(shard.num_targets for shard in shards) == num_said
    student = train(train_config(cache=cache.path))
    evaluation = evaluate(EvaluateConfig(student=student, cache=cache.path, device="cpu", quiet=True))
    held_out = sum(shard.num_targets for shard in cache.shards("soft_targets", "validation"))
    assert evaluation["num_targets"] == held_out
    assert AutoTokenizer.from_pretrained(student).chat_template == TEMPLATE
    answer = Generator(student, device="cpu", chat=True).generate("who?", max_new_tokens=8)
    assert answer == Generator(student, device="cpu").generate("<u>who?\n<a>", max_new_tokens=8)
