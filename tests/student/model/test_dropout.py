"""--dropout sets every dropout of a student, however its architecture calls it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from storage.errors import ConfigError
from student.model.dropout import set_dropout
from tests.odd_models import make_model

# Settings that turn on each dropout of a family.
ALL = {
    "gpt2": {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3},  # modules
    "llama": {"attention_dropout": 0.3},  # a number that each layer holds
    "opt": {"dropout": 0.3, "attention_dropout": 0.3, "layerdrop": 0.3},  # one of them drops whole layers
    "bloom": {"hidden_dropout": 0.3, "attention_dropout": 0.3},
    "falcon": {"hidden_dropout": 0.3, "attention_dropout": 0.3},
    "jamba": {"attention_dropout": 0.3},
}


def logits(model: Any, *, is_training: bool) -> torch.Tensor:
    torch.manual_seed(0)
    with torch.no_grad():
        found: torch.Tensor = model.train(is_training)(input_ids=torch.arange(40)[None], use_cache=False).logits
    return found


@pytest.mark.parametrize("family", ALL)
def test_no_dropout_is_left_or_stated(family: str, tmp_path: Any) -> None:
    model = make_model(family, **ALL[family])
    assert not torch.equal(logits(model, is_training=True), logits(model, is_training=False))
    set_dropout(model, 0.0)
    assert torch.equal(logits(model, is_training=True), logits(model, is_training=False))
    model.save_pretrained(tmp_path)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert {name: getattr(saved.config, name) for name in ALL[family]} == dict.fromkeys(ALL[family], 0.0)


@pytest.mark.parametrize("family", ALL)
def test_a_share_is_that_of_all_units_and_of_no_layers(family: str) -> None:
    set_everywhere = make_model(family, **ALL[family] | ({"layerdrop": 0.0} if family == "opt" else {}))
    changed = make_model(family)
    set_dropout(changed, 0.3)
    for is_training in (True, False):
        assert torch.equal(logits(changed, is_training=is_training), logits(set_everywhere, is_training=is_training))
    assert {name: getattr(changed.config, name) for name in ALL[family]} == {
        name: 0.0 if name == "layerdrop" else 0.3 for name in ALL[family]
    }


def test_settings_of_heads_that_are_not_there_stay() -> None:
    model = make_model("gpt2", summary_first_dropout=0.25)
    set_dropout(model, 0.0)
    assert model.config.summary_first_dropout == 0.25


@pytest.mark.parametrize(("family", "why"), [("mpt", "attn_pdrop"), ("diffllama", "does not support")])
def test_a_share_that_a_config_cannot_state_is_refused(family: str, why: str) -> None:
    """What could be trained so could not be loaded."""
    model = make_model(family) if family == "mpt" else _diffllama()
    set_dropout(model, 0.0)
    with pytest.raises(ConfigError, match=rf"--dropout 0\.2: .*{why}.*expected 0 or None") as caught:
        set_dropout(model, 0.2)
    assert "\n" not in str(caught.value)


def _diffllama() -> Any:
    from transformers import DiffLlamaConfig

    config = DiffLlamaConfig(
        vocab_size=257, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config)
