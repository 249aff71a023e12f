"""The teacher and the text that the repository holds."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
import zstandard
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.config import PrecomputeConfig
from pipeline.corpus.tokenization import tokenize_corpus
from pipeline.sources.corpus import open_corpus
from scripts.teacher.held_out import PROMPTS, measure
from scripts.teacher.licences import is_permissive

DEMO = Path(__file__).parents[3] / "scripts/demo"
TEACHER, TEXT = DEMO / "teacher", DEMO / "text/stdlib.jsonl.zst"
MAX_BYTES = 10_000_000


@pytest.fixture(scope="module")
def card() -> str:
    return (TEACHER / "README.md").read_text()


def test_it_is_small_and_in_half_precision() -> None:
    assert sum(path.stat().st_size for path in TEACHER.iterdir()) <= MAX_BYTES
    assert TEXT.stat().st_size <= MAX_BYTES / 10
    model = AutoModelForCausalLM.from_pretrained(TEACHER, dtype="auto")
    assert {each.dtype for each in model.parameters()} == {torch.float16}
    assert model.config.model_type == "gpt2"


def test_its_card_says_what_made_it_and_names_every_package_with_a_permissive_licence(card: str) -> None:
    assert "\npython -m scripts.teacher --data " in card
    rows = re.findall(r"^\| (\S+) \| (\d\S*) \| (.+) \| ([\d,]+) \|$", card, re.MULTILINE)
    count = re.search(r"Docstrings of (\d+) packages", card)
    assert count is not None
    assert len(rows) == int(count[1])
    assert all(is_permissive(licence) for _, _, licence, _ in rows)
    assert all(f"\n{prompt}█" in card for prompt in PROMPTS)


def test_the_cards_perplexity_of_the_demos_text_is_what_it_has(card: str, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(TEACHER, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(TEACHER)
    reading = PrecomputeConfig(
        teacher=str(TEACHER), data=str(TEXT), out=tmp_path / "out", block_size=256, max_tokens=8000,
        validation_fraction=0, quiet=True,
    )  # fmt: skip
    blocks = tokenize_corpus(
        open_corpus(reading),
        tokenizer,
        reading,
        vocab_size=len(tokenizer),
        context_length=256,
        work_dir=tmp_path / "work",
    ).blocks["train"]
    stated = re.search(rf"^\| {TEXT.name} \| [\d,]+ \| ([\d.]+) \| [\d.]+ \|$", card, re.MULTILINE)
    assert stated is not None
    found = measure(model, tokenizer, blocks, TEXT.name)
    assert math.log(found.perplexity) == pytest.approx(math.log(float(stated[1])), abs=0.25)


def test_the_text_is_what_its_page_says() -> None:
    with zstandard.open(TEXT, "rt") as file:
        texts = [json.loads(line)["text"] for line in file]
    page = (DEMO / "text/README.md").read_text()
    assert f"{len(texts)} modules" in page
    assert f"{sum(map(len, texts)) / 1e6:.1f} MB" in page
