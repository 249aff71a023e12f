"""Try a family as a teacher: run precompute, and compare every cached number with the model on each text alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import PrecomputeConfig, precompute
from scripts.models.families import Family, tiny_model
from scripts.models.materials import tiny_run, write_texts
from scripts.models.truth import Truth, documents, entries
from scripts.models.verdict import BY_ROW, NO, SOFT_TARGETS_ONLY, WRONG, YES, Verdict, failure, refusal
from scripts.support.teachers import save_byte_tokenizer
from storage import Cache, open_cache, verify_cache
from storage.errors import TeachonceError
from storage.records.identity import SPLITS
from storage.rows import beams, samples

# Log-probabilities are stored as float16.
_RELATIVE, _ABSOLUTE_NATS = 2**-10, 2e-3


def try_teacher(family: Family, directory: Path) -> Verdict:
    """Return whether the family's caches hold what the model itself says; `directory` is empty."""
    model = tiny_model(family)
    teacher = directory / family.name
    model.save_pretrained(teacher)
    save_byte_tokenizer(teacher)
    config = tiny_run(teacher, write_texts(directory / "texts.jsonl"), directory / "cache")
    try:
        return _tried(model, config)
    except TeachonceError as error:
        why = refusal(error, family.name, teacher)
    except Exception as error:
        return failure(error)
    only_targets = dataclasses.replace(config, kinds=("soft_targets",), out=directory / "only_soft_targets")
    try:
        verdict = _tried(model, only_targets)
    except TeachonceError:
        return Verdict(word=NO, why=why)
    except Exception as error:
        return failure(error)
    return Verdict(word=SOFT_TARGETS_ONLY, why=why) if verdict.word in (YES, BY_ROW) else verdict


def _tried(model: Any, config: PrecomputeConfig) -> Verdict:
    precompute(config)
    cache = open_cache(config.out)
    problems = verify_cache(Path(config.out)).problems
    if problems:
        return Verdict(word=WRONG, why=str(problems[0]))
    # Written with `not` so that NaN is found too.
    wrong = [(nats, what) for what, nats in _differences(Truth(model), cache) if not nats <= 0]
    if wrong:
        nats, what = max(wrong)
        return Verdict(word=WRONG, why=f"{what} is off by {nats + _ABSOLUTE_NATS:.2g} nats")
    return Verdict(word=BY_ROW if "isolation" in cache.identity.teacher else YES)


def _differences(truth: Truth, cache: Cache) -> Iterator[tuple[str, float]]:
    """Yield what was compared, and the nats by which the cache is further from the truth than rounding explains."""
    for batch in _batches(cache, "soft_targets"):
        for row in batch.to_pylist():
            yield from _of_block(truth, row)
    for batch in _batches(cache, "samples"):
        for sample in samples.decode(batch):
            yield (
                "a sample's logprob",
                _of_text(truth, sample.prompt_ids, sample.completion_ids, sample.completion_logprobs),
            )
    for batch in _batches(cache, "beams"):
        for beam in beams.decode(batch):
            for candidate in beam.candidates:
                found = np.array([candidate.sum_logprob])
                yield "a beam's logprob", _of_text(truth, beam.prompt_ids, candidate.candidate_ids, found)


def _of_text(truth: Truth, prompt: Any, continuation: Any, found: NDArray[Any]) -> float:
    """Return the excess of the logprobs of a continuation, or of their sum, over the whole text or the text so far."""
    excess = math.inf
    for expected in (truth.continued, truth.drawn):
        logprobs = expected(prompt, continuation)
        excess = _excess(found, logprobs if len(found) == len(logprobs) else logprobs.sum(keepdims=True))
        if excess <= 0:
            break
    return excess


def _batches(cache: Cache, kind: str) -> Iterator[pa.RecordBatch]:
    for split in SPLITS:
        if cache.num_rows(kind, split):
            yield from cache.record_batches(kind, split)


def _of_block(truth: Truth, row: dict[str, Any]) -> Iterator[tuple[str, float]]:
    heads = entries(row)
    for start, ids, labels in documents(row):
        logprobs = truth.logprobs(ids)
        for place, label in enumerate(labels):
            target, here = start + place, logprobs[place]
            head, head_logprobs, _ = heads[target]
            probabilities = np.exp(here)
            entropy = -(probabilities[probabilities > 0] * here[probabilities > 0]).sum(keepdims=True)
            yield "a label's logprob", _excess([row["label_logprob"][target]], here[[label]])
            yield "an entropy", _excess([row["entropy"][target]], entropy)
            yield "a head's logprob", _excess(head_logprobs, here[head])


def _excess(found: Any, expected: Any) -> float:
    """Return the largest |found − expected| beyond what the stored number's rounding explains."""
    difference = np.abs(np.asarray(found, dtype=np.float64) - expected)
    return float((difference - _RELATIVE * np.abs(expected) - _ABSOLUTE_NATS).max())
