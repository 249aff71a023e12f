"""lm-evaluation-harness loads a student as any model of transformers, and measures what the student computes."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

_TEXTS = ["the teacher ran once and wrote down", "what it knew so that a student may learn"]
_TASK = """
task: tiny
dataset_path: json
dataset_kwargs:
  data_files: {{test: {folder}/texts.jsonl}}
  cache_dir: {folder}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}}]
"""


def bits_per_byte(student: Path) -> float:
    """Every token of a text is predicted from those before it; the first, from the end of the text before."""
    model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float64).eval()
    tokenizer = AutoTokenizer.from_pretrained(student)
    nats = 0.0
    for text in _TEXTS:
        ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(text)["input_ids"]]])
        with torch.no_grad():
            logprobs = model(ids).logits.log_softmax(-1)
        nats -= float(logprobs[:, :-1].gather(-1, ids[:, 1:, None]).sum())
    return nats / math.log(2) / sum(len(text.encode()) for text in _TEXTS)


def test_lm_evaluation_harness_measures_a_student(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = pytest.importorskip("lm_eval.__main__")
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in _TEXTS))
    (tmp_path / "tiny.yaml").write_text(_TASK.format(folder=tmp_path))
    words = f"--model hf --model_args pretrained={saved},dtype=float32 --include_path {tmp_path} --tasks tiny"
    arguments = [*words.split(), "--device", "cpu", "--output_path", str(tmp_path / "found.json")]
    monkeypatch.setattr(sys, "argv", ["lm_eval", *arguments])
    command.cli_evaluate()
    [found] = tmp_path.glob("found*.json")
    results = json.loads(found.read_text())["results"]["tiny"]
    assert results["bits_per_byte,none"] == pytest.approx(bits_per_byte(saved), rel=1e-5)
