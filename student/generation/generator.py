"""Draw text from a trained student: whole, piece by piece, or the best of several continuations."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from storage.errors import ConfigError
from storage.tensors.model_facts import context_length_of
from storage.text.beginnings import without_beginning
from storage.text.characters import text_ids
from storage.text.completions import completion_text, stream_completion
from student.config import SamplingConfig
from student.errors import StudentContextError
from student.generation.candidates import RankedCandidate, continuation_scores, trained_length_penalty
from student.generation.questions import question_ids
from student.model.device import choose_device
from student.model.framing import read_framing, require_known_ids, require_unicode
from student.model.loading import load_student
from student.model.tokenizers import load_tokenizer
from student.token_loop import collect_texts, draw_tokens


@dataclass(frozen=True, kw_only=True)
class DrawnCandidate(RankedCandidate):
    """A drawn continuation. finish_reason: "stop" if it ended with an end id, else "length"."""

    finish_reason: str


class Generator:
    """A student that is loaded once and continues any number of prompts."""

    def __init__(self, student: Path | str, *, device: str = "auto", chat: bool = False) -> None:
        """Load the student in this directory.

        chat: a prompt is what a user says; continue it as the student's chat template renders that.

        Raise NoSuchStudentError when it cannot be loaded, CheckpointError when its run.json is damaged,
        EndBeyondVocabularyError, and ConfigError when the device does not exist.
        """
        self._student = Path(student)
        self._model = load_student(self._student).to(choose_device(device)).eval()
        self._tokenizer = load_tokenizer(self._student)
        self._chat = chat
        self._framing = read_framing(self._student, self._model, self._tokenizer)
        self._length_penalty = trained_length_penalty(self._student)

    @property
    def context_length(self) -> int:
        """Largest number of tokens of a prompt and its continuation together."""
        return context_length_of(self._model)

    def num_tokens(self, prompt: str) -> int:
        """Return the tokens of a prompt with its beginning.

        Raise PromptError when it is not valid Unicode, and ChatPromptError when no chat template renders it.
        """
        return len(self._framing.begin(self._text_ids(prompt)))

    def stream(
        self,
        prompt: str,
        *,
        max_new_tokens: int = SamplingConfig.max_new_tokens,
        temperature: float = SamplingConfig.temperature,
        top_p: float = SamplingConfig.top_p,
        seed: int = SamplingConfig.seed,
        keep_end: bool = False,
    ) -> Iterator[str]:
        """Return an iterator over the continuation in pieces of whole characters, each as soon as its tokens are drawn.

        keep_end: if the prompt leaves no room for max_new_tokens, keep only its last tokens, as many as fit.

        Raise StudentContextError when the prompt and max_new_tokens do not fit into the context (with keep_end, when
        max_new_tokens leaves no room for a token of the prompt), ConfigError for settings out of range, and PromptError
        when the prompt is not valid Unicode. The iterator raises BrokenStudentError when logits are not finite.
        """
        config = SamplingConfig(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
        prompt_ids = self._fitting_ids(prompt, config, keep_end)
        return stream_completion(self._tokenizer, prompt_ids, self._until_end(self._steps(prompt_ids, config, 1)))

    def generate(
        self,
        prompt: str,
        *,
        max_new_tokens: int = SamplingConfig.max_new_tokens,
        temperature: float = SamplingConfig.temperature,
        top_p: float = SamplingConfig.top_p,
        seed: int = SamplingConfig.seed,
        keep_end: bool = False,
    ) -> str:
        """Return the prompt's continuation: the pieces of `stream` joined. Raise as `stream` does."""
        pieces = self.stream(
            prompt, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed, keep_end=keep_end
        )
        return "".join(pieces)

    def candidates(
        self,
        prompt: str,
        num_candidates: int,
        *,
        max_new_tokens: int = SamplingConfig.max_new_tokens,
        temperature: float = SamplingConfig.temperature,
        top_p: float = SamplingConfig.top_p,
        seed: int = SamplingConfig.seed,
        keep_end: bool = False,
    ) -> list[DrawnCandidate]:
        """Return up to num_candidates different continuations, the one with the best score first.

        Draw them together, the i-th, counted from 0, as `stream` draws with seed + i. Rank them by the score that beam
        selection trained: summed log-probability / length^length_penalty in nats at temperature 1, where an end id that
        was drawn counts. Equal texts are one candidate with the best of their scores.

        Raise as `stream` does. Raise ConfigError also for fewer than one candidate, and for temperature 0, at which all
        candidates would be equal.
        """
        config = SamplingConfig(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
        if num_candidates < 1:
            raise ConfigError(f"--candidates is {num_candidates}, expected at least 1")
        if temperature == 0:
            raise ConfigError("--candidates are drawn: expected a --temperature above 0, at which they can differ")
        prompt_ids = self._fitting_ids(prompt, config, keep_end)
        drawn = collect_texts(self._steps(prompt_ids, config, num_candidates), self._framing.end_ids)
        scores = continuation_scores(self._model, prompt_ids, drawn, self._length_penalty)
        best: dict[str, DrawnCandidate] = {}
        for score, ids in sorted(zip(scores, drawn, strict=True), key=lambda scored: -scored[0]):
            reason = "stop" if ids[-1] in self._framing.end_ids else "length"
            text = completion_text(self._tokenizer, prompt_ids, ids)
            best.setdefault(text, DrawnCandidate(text=text, score=score, finish_reason=reason))
        return list(best.values())

    def _text_ids(self, prompt: str) -> list[int]:
        require_unicode(prompt)
        if self._chat:
            rendered = question_ids(self._tokenizer, prompt, str(self._student))
            ids = without_beginning(rendered, self._framing.beginning_ids)
        else:
            ids = text_ids(self._tokenizer, prompt)
        return require_known_ids(ids, self._model, self._tokenizer, str(self._student))

    def _fitting_ids(self, prompt: str, config: SamplingConfig, keep_end: bool) -> list[int]:
        ids = self._text_ids(prompt)
        room = self.context_length - config.max_new_tokens - len(self._framing.beginning_ids)
        if room < 1 or (len(ids) > room and not keep_end):
            needed = len(self._framing.begin(ids)) + config.max_new_tokens
            raise StudentContextError(str(self._student), self.context_length, needed, "prompt and --max-new-tokens")
        return self._framing.begin(ids[-room:])

    def _steps(self, prompt_ids: list[int], config: SamplingConfig, num_texts: int) -> Iterator[list[int]]:
        seeds = [config.seed + i for i in range(num_texts)]
        prompts = [np.array(prompt_ids)] * num_texts
        steps = draw_tokens(self._model, prompts, seeds, temperature=config.temperature, top_p=config.top_p)
        return islice(steps, config.max_new_tokens)

    def _until_end(self, steps: Iterator[list[int]]) -> Iterator[int]:
        """Yield the tokens of one text up to its end, which is included."""
        for (token,) in steps:
            yield token
            if token in self._framing.end_ids:
                return


def generation_speeds(
    models: Sequence[Any], *, prompt_tokens: int = 16, new_tokens: int = 64, rounds: int = 7
) -> list[float]:
    """Return the tokens per second of each model's greedy generation, at batch 1 and with the key-value cache.

    Each model runs on its own device; on a CPU, with as many threads as PyTorch is set to. The models take turns. Only
    the fastest of a model's `rounds` runs counts, because other work on the machine can only slow a run down. A run's
    time is from the call to the last token, so it includes reading a prompt of prompt_tokens. A short context
    reduces prompt_tokens and new_tokens.
    """
    runs = [[_timed_tokens_per_second(model, prompt_tokens, new_tokens) for model in models] for _ in range(rounds)]
    return [max(speeds) for speeds in zip(*runs, strict=True)]


def _timed_tokens_per_second(model: Any, prompt_tokens: int, new_tokens: int) -> float:
    context_length = context_length_of(model)
    prompt_tokens = min(prompt_tokens, max(1, context_length // 4))
    new_tokens = min(new_tokens, max(1, context_length - prompt_tokens))
    prompt_ids = np.zeros(prompt_tokens, dtype=np.int64)
    started = time.perf_counter()
    for _ in islice(draw_tokens(model, [prompt_ids], [0], temperature=0.0, top_p=1.0), new_tokens):
        pass
    return new_tokens / (time.perf_counter() - started)
