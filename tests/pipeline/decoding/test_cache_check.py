"""Before the first text is drawn it is known whether keys and values in a cache give what whole texts give."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipeline.decoding.cache_check import choose_cache
from pipeline.teacher.model import Teacher
from tests.odd_models import MODELS, make_model


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("num_tokens", [19, 40])
def test_a_cache_that_is_wrong_is_not_used(
    wrap_teacher: Callable[..., Teacher], capsys: pytest.CaptureFixture[str], name: str, num_tokens: int
) -> None:
    teacher = wrap_teacher(make_model(name))
    choose_cache(teacher, num_tokens)
    assert teacher.reads_whole_texts is MODELS[name][2]
    assert ("slower" in capsys.readouterr().err) is MODELS[name][2]


def test_a_function_of_the_texts_length_matters_only_for_texts_of_that_length(
    wrap_teacher: Callable[..., Teacher],
) -> None:
    teacher = wrap_teacher(make_model("phi3"))
    choose_cache(teacher, 16)
    assert not teacher.reads_whole_texts
    choose_cache(teacher, 17)
    assert teacher.reads_whole_texts
    choose_cache(teacher, 16)  # for another kind of rows
    assert teacher.reads_whole_texts


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2", "mixtral"])
def test_rounding_in_bfloat16_is_no_wrong_cache(wrap_teacher: Callable[..., Teacher], name: str) -> None:
    teacher = wrap_teacher(make_model(name).bfloat16())
    choose_cache(teacher, 40)
    assert not teacher.reads_whole_texts


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 4])
def test_very_short_texts(wrap_teacher: Callable[..., Teacher], num_tokens: int) -> None:
    teacher = wrap_teacher(make_model("gpt2"))
    choose_cache(teacher, num_tokens)
    assert not teacher.reads_whole_texts
