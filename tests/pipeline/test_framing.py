"""From text to student with a Llama-style teacher: BOS before every segment and prompt, several ends, spaces."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

import student
from pipeline import BeamsConfig, PrecomputeConfig, SamplesConfig, SoftTargetsConfig, precompute
from pipeline.errors import TokenBeyondVocabularyError
from pipeline.estimate import render_plan
from pipeline.run import plan_only
from storage import Cache
from storage.errors import CacheMismatchError, EndBeyondVocabularyError, NoBosTokenError
from storage.reading.inspection import render_summary, summarize
from storage.rows import beams, samples, soft_targets
from tests.precomputed import precomputed
from tests.storage.text.tokenizer_families import sentencepiece_bpe

BLOCK_SIZE = 16


def make_llama(directory: Path, *, ends: list[int] | None = None, **names: Any) -> Path:
    """A random Llama with grouped heads beside a sentencepiece-like tokenizer that puts BOS before every text."""
    tokenizer = sentencepiece_bpe(**names)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3, eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    if ends:
        model.generation_config = GenerationConfig(eos_token_id=ends)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def configured(helpers: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., PrecomputeConfig]:
    directory = tmp_path_factory.mktemp("llama")
    (directory / "text.txt").write_text("".join(helpers.make_text(40)))

    def configure(teacher: Path, name: str, **changes: Any) -> PrecomputeConfig:
        settings: dict[str, Any] = {
            "block_size": BLOCK_SIZE,
            "soft_targets": SoftTargetsConfig(top_k=400, tail_weight=None, scalar_mantissa_bits=10),
            "samples": SamplesConfig(num_prompts=30, prompt_tokens=3, max_new_tokens=40),
            "beams": BeamsConfig(num_prompts=8, prompt_tokens=3, max_new_tokens=8),
        }  # fmt: skip
        return helpers.tiny_config(teacher, directory / "text.txt", directory / name, **(settings | changes))  # type: ignore[no-any-return]

    return configure


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("teacher"), ends=[2, 3, 280, 9999])


@pytest.fixture(scope="module")
def made(llama: Path, configured: Callable[..., PrecomputeConfig]) -> Cache:
    return precomputed(configured(llama, "cache"))


def rows_of(cache: Cache, split: str = "train") -> list[soft_targets.SoftTargetRows]:
    return [soft_targets.decode(batch) for batch in cache.record_batches("soft_targets", split)]


def test_every_segment_begins_with_bos(made: Cache) -> None:
    assert made.identity.beginning_ids == (1,)
    texts: list[int] = []
    num_bos = num_segments = 0
    for rows in rows_of(made):
        assert rows.is_wanted is not None
        for ids, lengths, is_wanted in zip(rows.input_ids.tolist(), rows.segment_lengths, rows.is_wanted, strict=True):
            starts = (np.cumsum(lengths) - lengths).tolist()
            assert [ids[start] for start in starts] == [1] * len(starts)
            num_segments, num_bos = num_segments + len(starts), num_bos + ids.count(1)
            is_continuation = bool(texts) and texts[-1] != 2
            assert is_wanted[0] == (not is_continuation)
            assert all(is_wanted[start] for start in starts[1:] if start < BLOCK_SIZE)
            texts += [token for token in ids if token != 1]
    assert num_bos == num_segments > 30


@torch.inference_mode()
def test_cached_numbers_are_the_models_on_bos_and_segment(made: Cache, llama: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(llama, dtype=torch.float64).eval()
    num_targets = 0
    for rows in rows_of(made):
        for r, lengths in enumerate(rows.segment_lengths):
            start = 0
            for length in lengths.tolist():
                ids = rows.input_ids[r, start : start + length].astype(np.int64)
                logprobs = torch.log_softmax(model(input_ids=torch.from_numpy(ids)[None]).logits[0], dim=1)
                entropy = -(logprobs.exp() * logprobs).sum(1)
                for t in range(length - 1):
                    if rows.is_valid_target[r, start + t]:
                        label = float(logprobs[t, ids[t + 1]])
                        assert float(rows.label_logprob[r, start + t]) == pytest.approx(label, abs=0.01, rel=1e-3)
                        assert float(rows.entropy[r, start + t]) == pytest.approx(float(entropy[t]), abs=0.01)
                        num_targets += 1
                    else:
                        assert t == 0
                        assert start == 0
                start += length
    assert num_targets == sum(s.num_targets for s in made.manifest.shards if s.path.startswith("soft_targets/train"))


def test_prompts_begin_and_completions_follow_them(made: Cache) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(made.tokenizer_dir)
    stops = set()
    for split in ("train", "validation"):
        found = [row for batch in made.record_batches("samples", split) for row in samples.decode(batch)]
        texts = [(row.prompt_ids, row.completion_ids, row.text, row.finish_reason) for row in found]
        for beam_row in [row for batch in made.record_batches("beams", split) for row in beams.decode(batch)]:
            texts += [(beam_row.prompt_ids, c.candidate_ids, c.text, c.finish_reason) for c in beam_row.candidates]
        for prompt_ids, ids, text, reason in texts:
            assert prompt_ids[0] == 1
            assert len(prompt_ids) == 4
            before, whole = (
                tokenizer.decode(list(map(int, some)), skip_special_tokens=True)
                for some in (prompt_ids, [*prompt_ids, *ids])
            )
            assert whole.endswith(text)
            assert before.startswith(whole[: len(whole) - len(text)])
            assert (reason == "stop") == (int(ids[-1]) in made.identity.end_ids)
            assert not set(ids[:-1].tolist()) & set(made.identity.end_ids)
            stops |= {int(ids[-1])} if reason == "stop" else set()
    assert made.identity.end_ids == (2, 3, 280)
    assert len(stops) > 1


def test_what_is_said_about_beginnings_and_ends(
    made: Cache, llama: Path, configured: Callable[..., PrecomputeConfig], tmp_path: Path
) -> None:
    plan = plan_only(configured(llama, "planned"), render_plan).splitlines()
    assert "begins      every segment and prompt with '<s>' (id 1)" in plan
    assert any(line.startswith("ends        a text at '</s>' (id 2), '<|eot|>' (id 3), ") for line in plan)
    assert any("generation_config.json names 9999 as an end of text" in line for line in plan)
    summary = render_summary(summarize(made)).splitlines()
    assert "begins     every segment and prompt with '<s>' (id 1)" in summary
    assert any(line.startswith("ends       a text at '</s>' (id 2), '<|eot|>' (id 3), ") for line in summary)


def test_bos_can_be_left_out_and_asked_for(
    llama: Path, teacher_dir: Path, made: Cache, configured: Callable[..., PrecomputeConfig], tmp_path: Path
) -> None:
    without = precomputed(configured(llama, "without", bos="never", kinds=("soft_targets",)))
    assert "beginning_ids" not in without.identity.tokenizer
    assert not any((rows.input_ids == 1).any() for rows in rows_of(without))
    with pytest.raises(CacheMismatchError, match="beginning_ids"):
        precompute(configured(llama, "cache", bos="never"))
    with pytest.raises(NoBosTokenError):
        precompute(configured(teacher_dir, "no-bos", bos="always"))


@pytest.mark.parametrize(("bos", "begins"), [("never", []), ("always", [1])])
def test_the_tokenizer_of_the_cache_begins_texts_as_its_rows(
    llama: Path, configured: Callable[..., PrecomputeConfig], tmp_path: Path, bos: str, begins: list[int]
) -> None:
    teacher = shutil.copytree(llama, tmp_path / "teacher")
    tokenizer = sentencepiece_bpe()
    if bos == "always":
        tokenizer.add_bos_token = False
    tokenizer.save_pretrained(teacher)
    plain = tokenizer("the cat", add_special_tokens=False)["input_ids"]
    cache = precomputed(configured(teacher, f"bos-{bos}", bos=bos, kinds=("soft_targets",)))
    assert list(cache.identity.beginning_ids) == begins
    assert AutoTokenizer.from_pretrained(cache.tokenizer_dir)("the cat")["input_ids"] == [*begins, *plain]


def test_a_teacher_without_a_beginning_has_a_cache_as_ever(cache: Cache) -> None:
    assert cache.identity.tokenizer.keys() == {"size", "eos_token_id", "sha256"}
    assert "is_wanted" not in cache.identity.config["soft_targets"]


def test_a_student_keeps_how_its_texts_begin_and_end(made: Cache, tmp_path: Path) -> None:
    out = student.train(
        student.TrainConfig(
            cache=made.path, out=tmp_path / "student", preset="mini", max_steps=2, batch_blocks=4, device="cpu",
            quiet=True,
        )
    )  # fmt: skip
    assert json.loads((out / "run.json").read_text())["beginning_ids"] == [1]
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [2, 3, 280]
    assert json.loads((out / "config.json").read_text())["bos_token_id"] == 1
    generator = student.Generator(out, device="cpu")
    plain = sentencepiece_bpe()("the cat", add_special_tokens=False)["input_ids"]
    assert generator.num_tokens("the cat") == 1 + len(plain)
    assert generator.num_tokens("") == 1
    text = generator.generate("the cat", max_new_tokens=20, seed=3, temperature=2.0)
    assert text == "".join(generator.stream("the cat", max_new_tokens=20, seed=3, temperature=2.0))
    measures = student.evaluate(
        student.EvaluateConfig(student=out, cache=made.path, device="cpu", quiet=True, num_prompts=2)
    )
    assert measures["perplexity"] > 1


def test_an_id_without_a_row_matters_only_where_it_is_used(
    configured: Callable[..., PrecomputeConfig], helpers: ModuleType, tmp_path: Path
) -> None:
    teacher = helpers.make_teacher(tmp_path / "teacher", vocab_size=257)
    tokenizer_file = teacher / "tokenizer.json"
    content = json.loads(tokenizer_file.read_text())
    added = dict(content["added_tokens"][0], id=400, content="<tool>", special=False)
    content["added_tokens"].append(added)
    content["model"]["vocab"]["<tool>"] = 400
    tokenizer_file.write_text(json.dumps(content))
    config = configured(teacher, "holes", block_size=16, soft_targets=SoftTargetsConfig())
    assert precomputed(config).identity.tokenizer["size"] == 258
    (tmp_path / "used.txt").write_text("a first document\nand a <tool> here, further on in the text\n" * 3)
    used = dataclasses.replace(config, data=str(tmp_path / "used.txt"), out=tmp_path / "used")
    with pytest.raises(
        TokenBeyondVocabularyError, match=r"document 2 of .*used.txt holds '<tool>', id 400 .* below 257"
    ):
        precompute(used)
    content["added_tokens"][0]["id"] = 300
    content["model"]["vocab"]["<|endoftext|>"] = 300
    tokenizer_file.write_text(json.dumps(content))
    with pytest.raises(EndBeyondVocabularyError, match=r"names '<\|endoftext\|>', id 300"):
        precompute(dataclasses.replace(config, out=tmp_path / "hole"))


def test_a_tokenizer_without_an_end_is_told(
    configured: Callable[..., PrecomputeConfig],
    helpers: ModuleType,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    teacher = helpers.make_teacher(tmp_path / "teacher", vocab_size=256, eos_token=None)
    config = configured(teacher, "endless", kinds=("samples",), quiet=False, soft_targets=SoftTargetsConfig())
    precompute(config)
    told = capfd.readouterr().err
    assert told.count("no end: neither tokenizer nor configs name an end of text") == 1
    assert "no end: neither tokenizer nor configs" in plan_only(
        dataclasses.replace(config, out=tmp_path / "o"), render_plan
    )
