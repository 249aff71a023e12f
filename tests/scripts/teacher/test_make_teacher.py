"""A teacher that is trained on the spot: killed, gone on, lengthened, refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from scripts.teacher import training
from scripts.teacher.make_teacher import make_teacher
from storage.errors import ConfigError

TINY = [
    "--vocab-size", "280", "--layers", "2", "--width", "32", "--heads", "2", "--context", "32", "--block-size", "16",
    "--batch-blocks", "4", "--dtype", "bfloat16",
]  # fmt: skip


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.jsonl"
    rows = [
        {"text": f"Return the value number {i} of a list, or raise ValueError if {i * i} is in it."} for i in range(60)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def make(text: Path, monkeypatch: pytest.MonkeyPatch):
    """Run the command with some flags, and return the weights."""
    monkeypatch.setattr(training, "_CHECKPOINT_SECONDS", -1.0)  # after every step
    monkeypatch.setattr(training, "WARMUP_STEPS", 2)

    def run(out: Path, *flags: str, epochs: str = "0.4") -> dict[str, torch.Tensor]:
        arguments = ["--data", str(text), "--out", str(out), *TINY, "--epochs", epochs, *flags]
        monkeypatch.setattr("sys.argv", ["make_teacher", *arguments])
        assert make_teacher() == 0
        return load_file(out / "model.safetensors")

    return run


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch):
    """Let the training stop, as if it were killed, at its n-th batch from now."""
    true_loss = training.loss_sum

    def set_stop(batch: int) -> None:
        left = [batch]

        def loss_sum(*arguments):
            left[0] -= 1
            if left[0] == 0:
                monkeypatch.setattr(training, "loss_sum", true_loss)
                raise KeyboardInterrupt
            return true_loss(*arguments)

        monkeypatch.setattr(training, "loss_sum", loss_sum)

    return set_stop


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_killed_training_goes_on_and_ends_with_the_same_weights(make, stop_at, tmp_path: Path) -> None:
    undisturbed = make(tmp_path / "undisturbed")
    stop_at(4)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "killed")
    assert not (tmp_path / "killed").exists()
    assert torch.load(tmp_path / "killed.training/checkpoint.pt", weights_only=True)["step"] == 3
    assert same(make(tmp_path / "killed"), undisturbed)
    assert not (tmp_path / "killed.training").exists()


def test_a_training_is_lengthened_until_its_rate_falls(make, stop_at, tmp_path: Path) -> None:
    longer = make(tmp_path / "longer", epochs="0.8")
    stop_at(4)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "lengthened")
    assert same(make(tmp_path / "lengthened", epochs="0.8"), longer)
    stop_at(13)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "late")
    with pytest.raises(ConfigError, match=r"has done 12 of \d+ steps, and another --epochs \(\d+ steps\) would have"):
        make(tmp_path / "late", epochs="0.8")


def test_another_setting_is_another_teacher(make, stop_at, tmp_path: Path) -> None:
    stop_at(2)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "teacher")
    with pytest.raises(ConfigError, match=r"teacher\.training: begun with --learning-rate 0\.002, not 0\.1; repeat it"):
        make(tmp_path / "teacher", "--learning-rate", "0.1")


def test_the_rate_rises_stays_and_falls_to_nothing() -> None:
    factors = [training.rate_factor(step, 1000) for step in range(1000)]
    assert factors[:50] == [(step + 1) / training.WARMUP_STEPS for step in range(50)]
    assert set(factors[50:700]) == {1.0}
    assert factors[-1] == pytest.approx(1 / 300)


def test_the_card_tells_what_made_it_and_what_it_makes_of_unseen_text(make, text: Path, tmp_path: Path) -> None:
    sources = [{"name": "a", "version": "1", "licence": "MIT", "num_chars": 5, "num_modules_like_stdlib": 2}]
    text.with_name("text.jsonl.sources.json").write_text(json.dumps(sources))
    weights = make(tmp_path / "teacher", "--half-precision", "--unseen-data", str(text))
    assert {each.dtype for each in weights.values()} == {torch.float16}
    card = (tmp_path / "teacher/README.md").read_text()
    assert "python -m scripts.teacher --data" in card
    assert "| a | 1 | MIT | 5 |" in card
    assert "2 of their modules" in card
    assert "| text.jsonl | " in card
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "teacher", dtype=torch.float32)
    assert model.config.vocab_size == len(AutoTokenizer.from_pretrained(tmp_path / "teacher")) == 280
