"""The cache with slots: a teacher sees the same text, whatever came and went around it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, MistralConfig

from pipeline.decoding.prefill import Prefilled, prefill
from pipeline.decoding.slot_cache import SlotCache
from pipeline.teacher.model import Teacher

VOCAB_SIZE, LONGEST = 19, 6


@pytest.fixture(params=["gpt2", "sliding window"])
def teacher(request: pytest.FixtureRequest, wrap_teacher: Callable[..., Teacher]) -> Teacher:
    torch.manual_seed(0)
    if request.param == "gpt2":
        config = GPT2Config(
            vocab_size=VOCAB_SIZE, n_positions=64, n_embd=16, n_layer=2, n_head=2, initializer_range=0.6,
            bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
    else:
        config = MistralConfig(
            vocab_size=VOCAB_SIZE, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, initializer_range=0.6, sliding_window=3,
        )  # fmt: skip
    return wrap_teacher(AutoModelForCausalLM.from_config(config))


class Side:
    """A SlotCache and, beside it, the texts that its slots hold as plain lists."""

    def __init__(self, teacher: Teacher, prompts: list[list[int]], spare_columns: int) -> None:
        self.teacher, self.rng = teacher, np.random.default_rng(3)
        prefilled = self.prefill(prompts)
        self.cache = SlotCache(prefilled.cache, len(prompts), longest_prompt=LONGEST, spare_columns=spare_columns)
        self.texts = [[] for _ in prompts]
        self.place(list(range(len(prompts))), prompts)

    def prefill(self, prompts: list[list[int]]) -> Prefilled:
        return prefill(self.teacher, [np.array(prompt) for prompt in prompts])

    @torch.inference_mode()
    def place(self, slots: list[int], prompts: list[list[int]]) -> None:
        prefilled = self.prefill(prompts)
        self.cache.place(np.array(slots), prefilled.cache, prefilled.rows, prefilled.lengths)
        for slot, prompt in zip(slots, prompts, strict=True):
            self.texts[slot] = list(prompt)

    @torch.inference_mode()
    def append(self) -> None:
        """Add a token to every slot and compare the hidden states with those of the texts alone."""
        ids = self.rng.integers(0, VOCAB_SIZE, len(self.texts))
        mask, positions = self.cache.open_column()
        found = self.teacher.last_hidden(self.teacher.to_device(ids[:, None]), mask, positions, self.cache)
        for slot, token in enumerate(ids.tolist()):
            self.texts[slot].append(token)
            alone = self.teacher.hidden(np.array([self.texts[slot]]), [np.array([len(self.texts[slot])])])
            torch.testing.assert_close(found[slot], alone[0, -1], atol=1e-4, rtol=1e-4)


def test_texts_that_enter_late_and_columns_that_move_back_change_nothing(teacher: Teacher) -> None:
    side = Side(teacher, [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10]], spare_columns=9)
    for turn in range(12):
        for _ in range(3):
            side.append()
        side.place([turn % 3], [[turn, 2][: 1 + turn % 2]])


def test_a_prompt_in_several_slots_is_run_once(teacher: Teacher) -> None:
    prefilled = prefill(teacher, [np.array(ids) for ids in ([1, 2], [3], [1, 2], [3], [3])])
    assert prefilled.rows.tolist() == [0, 1, 0, 1, 1]
    assert prefilled.lengths.tolist() == [2, 1, 2, 1, 1]
    assert len(prefilled.hidden_UD) == len(prefilled.cache.layers[0].keys) == 2
    side = Side(teacher, [[1, 2], [3], [1, 2], [3], [3]], spare_columns=6)
    for _ in range(5):
        side.append()


def test_slots_that_are_dropped_or_released_leave_the_others_alone(teacher: Teacher) -> None:
    side = Side(teacher, [[1, 2, 3], [4, 4], [5], [6, 7, 8, 9]], spare_columns=20)
    side.append()
    side.cache.keep(np.array([3, 0]))
    side.texts = [side.texts[3], side.texts[0]]
    for _ in range(4):
        side.append()
    side.cache.release(np.array([1]))
    side.texts[1] = []
    for _ in range(4):
        side.append()


def test_a_copied_slot_continues_the_text_it_was_copied_from(teacher: Teacher) -> None:
    side = Side(teacher, [[1, 2, 3], [1, 2, 3], [5], [5]], spare_columns=20)
    for num_columns in (1, 2, 3):
        side.append()
        side.cache.copy(np.array([1, 2]), np.array([0, 3]), num_columns=num_columns)
        side.texts[0], side.texts[3] = list(side.texts[1]), list(side.texts[2])
    side.append()
