"""Measure how many tokens per second a teacher generates as texts and candidates, against `generate` of transformers.

Both sides get the same prompts of mixed lengths and the same number of rows at a time. `generate` gets the prompts in
the order given, left-padded, and uses its default cache. Tokens count up to the end of a text. Ours is measured as
precompute runs it, from prompts to record batches with log-probabilities and scores.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from transformers import GenerationConfig

from pipeline.config import BeamsConfig, PrecomputeConfig, SamplesConfig
from pipeline.corpus.blocks import PromptSet
from pipeline.flags import Dtype
from pipeline.plan import RECORD_BATCH_ROWS
from pipeline.producers.beams import BeamsProducer
from pipeline.producers.samples import SamplesProducer
from pipeline.teacher.loading import load_teacher
from pipeline.teacher.model import Teacher
from scripts.bench.comparison import Comparison
from scripts.bench.config import BenchConfig
from scripts.support.measure import interleaved_seconds
from scripts.support.teachers import save_random_teacher
from storage.rows import beams, samples
from storage.tensors.padding import left_pad

Texts = list[NDArray[np.int64]]
Generate = Callable[["Work"], Texts]

_TARGET = 1.5
_NUM_BEAMS = 4
# Offset of the last hidden state along the first axis. Only the head's row of the end-of-text token reads that axis.
_OFFSET = 20.0


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much to generate. A beam search takes _NUM_BEAMS rows."""

    longest_prompt: int
    max_new_tokens: int
    batch_rows: int
    num_texts: int
    num_searches: int


SIZES = {
    "full": Size(longest_prompt=32, max_new_tokens=32, batch_rows=64, num_texts=128, num_searches=32),
    "gpu": Size(longest_prompt=32, max_new_tokens=32, batch_rows=256, num_texts=512, num_searches=64),
    "tiny": Size(longest_prompt=8, max_new_tokens=12, batch_rows=8, num_texts=40, num_searches=5),
}


@dataclass(frozen=True, kw_only=True)
class Work:
    """A teacher loaded by precompute, the same model loaded by transformers, and prompts for both."""

    config: PrecomputeConfig
    teacher: Teacher
    model: Any
    prompts: Texts
    batch_rows: int


def run(config: BenchConfig) -> Iterator[Comparison]:
    """Compare samples that end early, samples of full length, and beams. Only float32 has targets."""
    size = SIZES[config.size]
    with tempfile.TemporaryDirectory() as directory:
        plain, ending = Path(directory) / "plain", Path(directory) / "ending"
        save_random_teacher(plain, config.device, config.saved_dtype, **config.model)
        save_ending_teacher(ending, config)
        for dtype in config.dtypes:
            target = _TARGET if dtype == "float32" else None
            for what, teacher, ours, theirs, count in (
                ("texts that end early", ending, our_samples, their_samples, size.num_texts),
                ("texts of full length", plain, our_samples, their_samples, size.num_texts),
                ("beams", plain, our_beams, their_beams, size.num_searches),
            ):
                work = prepare(teacher, config, dtype, count)
                yield _compare(f"{what}, {dtype}", work, ours, theirs, config, target)


def save_ending_teacher(directory: Path, config: BenchConfig) -> None:
    """Save a teacher whose texts end after about a third of max_new_tokens, with geometrically distributed lengths."""
    save_random_teacher(directory, config.device, config.saved_dtype, **config.model)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    eos = transformers.AutoTokenizer.from_pretrained(directory).eos_token_id
    probability = 3 / SIZES[config.size].max_new_tokens
    head_VD = model.get_output_embeddings().weight
    # After the last layer norm hidden states are normal. So the logits are normal with variance σ², and
    # E exp(logit) = exp(σ² / 2).
    variance = float(head_VD.detach().var()) * head_VD.shape[1]
    logit = math.log(probability / (1 - probability)) + math.log(head_VD.shape[0]) + variance / 2
    with torch.no_grad():
        model.base_model.ln_f.bias[0] = _OFFSET
        head_VD[:, 0] = 0.0
        head_VD[eos] = 0.0
        head_VD[eos, 0] = logit / _OFFSET
    model.save_pretrained(directory)


def prepare(directory: Path, bench: BenchConfig, dtype: Dtype, num_prompts: int) -> Work:
    """Load the teacher on both sides and make prompts of 1 to longest_prompt tokens."""
    size = SIZES[bench.size]
    config = PrecomputeConfig(
        teacher=str(directory),
        data="",
        out=directory,
        device=bench.device,
        dtype=dtype,
        batch_tokens=size.batch_rows * (size.longest_prompt + size.max_new_tokens),
        samples=SamplesConfig(per_prompt=1, max_new_tokens=size.max_new_tokens),
        beams=BeamsConfig(num_beams=_NUM_BEAMS, num_candidates=_NUM_BEAMS, max_new_tokens=size.max_new_tokens),
    )
    teacher = load_teacher(config)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).to(bench.device).eval()
    # Settings that a call does not name must not come from the checkpoint.
    model.generation_config = GenerationConfig()
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, size.longest_prompt + 1, num_prompts)
    lengths[-1] = size.longest_prompt
    prompts = [rng.integers(0, bench.model["vocab_size"], length) for length in lengths]
    return Work(config=config, teacher=teacher, model=model, prompts=prompts, batch_rows=size.batch_rows)


def our_samples(work: Work) -> Texts:
    """Return a text for each prompt, drawn and stored as precompute does it."""
    schema = samples.schema(work.teacher.vocab_size)
    producer = SamplesProducer(work.teacher, work.config, _prompt_sets(work), schema)
    batches = producer.record_batches("train", 0, len(work.prompts), RECORD_BATCH_ROWS)
    return [row.completion_ids for batch in batches for row in samples.decode(batch)]


def their_samples(work: Work) -> Texts:
    """Return a text for each prompt, drawn by `generate`."""
    settings = GenerationConfig(do_sample=True, temperature=1.0, top_k=0)
    return [
        text
        for first in range(0, len(work.prompts), work.batch_rows)
        for text in _generate(work, work.prompts[first : first + work.batch_rows], settings)
    ]


def our_beams(work: Work) -> Texts:
    """Return the candidates of each prompt, best first, found and stored as precompute does it."""
    schema = beams.schema(work.teacher.vocab_size)
    producer = BeamsProducer(work.teacher, work.config, _prompt_sets(work), schema)
    batches = producer.record_batches("train", 0, len(work.prompts), RECORD_BATCH_ROWS)
    rows = [row for batch in batches for row in beams.decode(batch)]
    return [candidate.candidate_ids for row in rows for candidate in row.candidates]


def their_beams(work: Work) -> Texts:
    """Return the candidates of each prompt, found by `generate` with the scores that a cache needs."""
    settings = GenerationConfig(
        num_beams=_NUM_BEAMS,
        num_return_sequences=_NUM_BEAMS,
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
    )
    num_prompts = work.batch_rows // _NUM_BEAMS
    return [
        text
        for first in range(0, len(work.prompts), num_prompts)
        for text in _generate(work, work.prompts[first : first + num_prompts], settings)
    ]


def _generate(work: Work, prompts: Texts, settings: GenerationConfig) -> Texts:
    """Run `generate` on left-padded prompts. Return each row's new tokens up to its end of text."""
    ids, is_token = (work.teacher.to_device(array) for array in left_pad(prompts))
    eos = work.teacher.tokenizer.eos_token_id
    settings.update(max_new_tokens=work.config.samples.max_new_tokens, eos_token_id=eos, pad_token_id=eos)
    found = work.model.generate(input_ids=ids, attention_mask=is_token, generation_config=settings)
    new_ids = getattr(found, "sequences", found)[:, ids.shape[1] :].cpu().numpy()
    lengths = np.where((new_ids == eos).any(axis=1), (new_ids == eos).argmax(axis=1) + 1, new_ids.shape[1])
    return [row[:length] for row, length in zip(new_ids, lengths, strict=True)]


def _prompt_sets(work: Work) -> dict[str, PromptSet]:
    return {"train": PromptSet(prompt_id=list(range(len(work.prompts))), prompt_ids=work.prompts)}


def _compare(
    what: str, work: Work, ours: Generate, theirs: Generate, config: BenchConfig, target: float | None
) -> Comparison:
    num_tokens: dict[str, list[int]] = {"ours": [], "theirs": []}

    def counting(name: str, generate: Generate) -> Callable[[], None]:
        return lambda: num_tokens[name].append(sum(map(len, generate(work))))

    variants = {"ours": counting("ours", ours), "theirs": counting("theirs", theirs)}
    seconds = interleaved_seconds(variants, config.rounds, config.device)
    rates = {
        name: [count / time for count, time in zip(num_tokens[name][-config.rounds :], seconds[name], strict=True)]
        for name in variants
    }
    return Comparison(
        what=what,
        ours="precompute",
        reference="generate",
        our_values=rates["ours"],
        reference_values=rates["theirs"],
        unit="tokens/s",
        target=target,
        more_is_better=True,
    )
