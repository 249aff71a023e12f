"""Try a family as a student: train, take a gradient, evaluate and write text, each against the model on texts alone."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import transformers
from torch import Tensor

from scripts.models.families import EOS_TOKEN_ID, Family, tiny_config
from scripts.models.materials import TAIL_WEIGHT
from scripts.models.truth import Truth, documents, entries
from scripts.models.verdict import BY_ROW, NO, WRONG, YES, Verdict, failure, refusal
from storage import Cache, open_cache
from storage.errors import TeachonceError
from storage.rows import beams, samples
from storage.tensors.packing import Isolation
from student import EvaluateConfig, Generator, TrainConfig, evaluate, train
from student.model.isolation import isolation_of
from student.token_loop import draw_tokens
from student.training.learner import Learner, make_learner

_PROMPTS = ("the teacher ran", "a")
_NUM_TOKENS = 6
_TOLERANCE = 2e-3


def try_student(family: Family, cache_directory: Path, directory: Path) -> Verdict:
    """Return whether the family's config trains on the cache as its own logits say; `directory` is empty."""
    tiny_config(family).save_pretrained(directory / "config")
    preset = directory / "config" / "config.json"
    config = TrainConfig(
        cache=cache_directory, out=directory / "student", preset=str(preset), max_steps=3, batch_blocks=2,
        batch_samples=2, batch_beams=1, device="cpu", quiet=True,
    )  # fmt: skip
    try:
        train(config)
        cache = open_cache(config.cache)
        learner = make_learner(config, cache, torch.device("cpu"))
        for problem in _problems(config, cache, learner):
            return Verdict(word=WRONG, why=problem)
    except TeachonceError as error:
        return Verdict(word=NO, why=refusal(error, family.name, preset))
    except Exception as error:
        return failure(error)
    return Verdict(word=YES if isolation_of(learner.parallel.model) is Isolation.PACKED else BY_ROW)


def _problems(config: TrainConfig, cache: Cache, learner: Learner) -> Iterator[str]:
    """Yield, in a line each, where the student's side differs from the model itself."""
    off = _gradient_difference(config, cache, learner)
    if not off <= _TOLERANCE:
        yield f"the gradient is off by a share of {off:.2g}"
    model = transformers.AutoModelForCausalLM.from_pretrained(config.out, dtype=torch.float32).eval()
    truth = Truth(model)
    found = evaluate(EvaluateConfig(student=config.out, cache=config.cache, num_prompts=4, device="cpu", quiet=True))
    for name, expected in _measures(truth, cache).items():
        if not math.isclose(found[name], expected, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE):
            yield f"{name} is {found[name]:.4g}, alone it is {expected:.4g}"
    yield from _wrong_texts(config.out, model, truth)


def _gradient_difference(config: TrainConfig, cache: Cache, learner: Learner) -> float:
    """Return max |found − expected| / max |expected| over the gradient of one step's loss, before dropout."""
    model = learner.parallel.model.eval()
    truth = Truth(model)
    rows = {
        kind: next(iter(cache.record_batches(kind, "train"))).slice(0, 2) for kind in learner.objective.batch_rows()
    }
    learner.objective.accumulate(rows)
    _loss(truth, rows, config, cache).backward()  # type: ignore[no-untyped-call]
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    expected = {name: weight.grad for name, weight in truth.model.named_parameters() if weight.grad is not None}
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    zero = torch.zeros(())
    names = {*found, *expected}
    return max(float((found.get(n, zero).double() - expected.get(n, zero)).abs().max()) for n in names) / largest


def _loss(truth: Truth, rows: dict[str, pa.RecordBatch], config: TrainConfig, cache: Cache) -> Tensor:
    """Return the loss of a step with the default weights, one text at a time (DESIGN §4)."""
    soft, labels = [], []
    for row in rows["soft_targets"].to_pylist():
        heads = entries(row)
        for start, ids, next_ids in documents(row):
            logs = torch.log_softmax(truth.logits(ids), dim=1)
            for place, label in enumerate(next_ids):
                head, head_logprobs, tail = heads[start + place]
                soft.append(_cross_entropy(logs[place], head, head_logprobs, tail))
                labels.append(-logs[place, label])
    tokens = [
        -_continued(truth, sample.prompt_ids, sample.completion_ids) for sample in samples.decode(rows["samples"])
    ]
    choices = [_choice(truth, beam, config, cache) for beam in beams.decode(rows["beams"])]
    return (
        torch.stack(soft).mean()
        + 0.1 * torch.stack(labels).mean()
        + 0.5 * torch.cat(tokens).mean()
        + 0.05 * torch.stack(choices).mean()
    )


def _cross_entropy(logs_V: Tensor, head: list[int], head_logprobs: Any, tail: list[int]) -> Tensor:
    """Return −Σ q log s, where each draw of the tail stands for TAIL_WEIGHT."""
    return -(torch.tensor(np.exp(head_logprobs)) * logs_V[head]).sum() - TAIL_WEIGHT * logs_V[tail].sum()


def _continued(truth: Truth, prompt: Any, continuation: Any) -> Tensor:
    logs = torch.log_softmax(truth.logits([*prompt, *continuation]), dim=1)[len(prompt) - 1 : -1]
    return logs.gather(1, torch.tensor(np.asarray(continuation, dtype=np.int64))[:, None])[:, 0]


def _choice(truth: Truth, beam: Any, config: TrainConfig, cache: Cache) -> Tensor:
    """Return the cross-entropy from softmax(teacher's scores / T) to softmax(student's scores / T)."""
    temperature = config.selection_temperature
    assert temperature is not None
    penalty = cache.setting("config", "beams", "length_penalty")
    scores = torch.stack(
        [
            _continued(truth, beam.prompt_ids, candidate.candidate_ids).sum() / len(candidate.candidate_ids) ** penalty
            for candidate in beam.candidates
        ]
    )
    teacher = torch.tensor([candidate.score for candidate in beam.candidates], dtype=torch.float64)
    return -(torch.softmax(teacher / temperature, dim=0) * torch.log_softmax(scores / temperature, dim=0)).sum()


def _measures(truth: Truth, cache: Cache) -> dict[str, float]:
    """Return perplexity and KL on the validation split."""
    nll, kl = [], []
    for batch in cache.record_batches("soft_targets", "validation"):
        for row in batch.to_pylist():
            heads = entries(row)
            for start, ids, next_ids in documents(row):
                logs = torch.from_numpy(truth.logprobs(ids))
                for place, label in enumerate(next_ids):
                    head, head_logprobs, tail = heads[start + place]
                    nll.append(-float(logs[place, label]))
                    cross_entropy = float(_cross_entropy(logs[place], head, head_logprobs, tail))
                    kl.append(cross_entropy - row["entropy"][start + place])
    return {"perplexity": math.exp(np.mean(nll)), "kl_nats": float(np.mean(kl))}


def _wrong_texts(student: Path, model: Any, truth: Truth) -> Iterator[str]:
    """Yield a line for a greedy text that is not that of whole passes, alone or beside a longer one."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(student)
    prompts = [tokenizer(prompt)["input_ids"] for prompt in _PROMPTS]
    expected = [truth.greedy(prompt, _NUM_TOKENS) for prompt in prompts]
    text = Generator(student, device="cpu").generate(_PROMPTS[0], max_new_tokens=_NUM_TOKENS, temperature=0.0)
    until_end = list(itertools.takewhile(lambda token: token != EOS_TOKEN_ID, expected[0]))
    if text != tokenizer.decode(until_end):
        yield "a greedy text differs from that of whole passes"
    steps = draw_tokens(copy.deepcopy(model), [np.array(ids) for ids in prompts], [0, 1], temperature=0.0, top_p=1.0)
    drawn = [list(ids) for ids in zip(*itertools.islice(steps, _NUM_TOKENS), strict=True)]
    if drawn != expected:
        yield "a greedy text beside a longer one differs from that of whole passes"
