"""Rank several texts by the score that beam selection trained the student on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from storage.errors import first_line
from storage.tensors.model_facts import context_length_of
from storage.text.characters import text_ids
from student.errors import BrokenStudentError, CandidatesError, CheckpointError, StudentContextError
from student.losses.batches import text_batch
from student.losses.selection import length_normalised_scores
from student.losses.token_logprobs import token_logprobs
from student.model.architecture import hidden_states, num_vocabulary_rows, output_head
from student.model.framing import Framing, require_known_ids, require_unicode
from student.run_record import RUN_NAME, read_run

# Texts whose last token hardly any following text joins; one of them keeps apart from what follows.
_TEXTS_BEFORE = ("=", "a", "\n", "0")


@dataclass(frozen=True, kw_only=True)
class RankedCandidate:
    """A candidate and its score in nats: summed log-probability / length^length_penalty."""

    text: str
    score: float


def read_candidates(path: Path) -> list[str]:
    """Return the candidates in a UTF-8 file, one per line that is not blank.

    Raise CandidatesError when the file cannot be read or holds fewer than two.
    """
    try:
        candidates = [line for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise CandidatesError(str(path), f"cannot be read ({first_line(error)})") from error
    if len(candidates) < 2:
        raise CandidatesError(str(path), f"holds {len(candidates)} candidates")
    return candidates


def rank_candidates(
    model: Any, tokenizer: Any, framing: Framing, prompt: str, candidates: list[str], length_penalty: float
) -> list[RankedCandidate]:
    """Return the candidates, scored as continuations of the prompt, best first.

    Raise PromptError for a prompt that is not Unicode, IdBeyondVocabularyError, and as continuation_scores does.
    """
    require_unicode(prompt)
    prompt_ids = text_ids(tokenizer, prompt)
    continuations = [_continuation_ids(tokenizer, prompt, text) or [0] for text in candidates]
    for ids in (prompt_ids, *continuations):
        require_known_ids(ids, model, tokenizer, model.name_or_path)
    scores = continuation_scores(model, framing.begin(prompt_ids), continuations, length_penalty)
    ranked = [RankedCandidate(text=text, score=score) for text, score in zip(candidates, scores, strict=True)]
    return sorted(ranked, key=lambda candidate: -candidate.score)


def _continuation_ids(tokenizer: Any, prompt: str, text: str) -> list[int]:
    """Return the tokens of a text that continues the prompt, as the tokens of both together give them.

    Where a token would lie on both sides of the border, take the tokens that the text has behind another text. Alone,
    it would begin with the mark that some tokenizers put before the first word.
    """
    if not prompt:
        return text_ids(tokenizer, text)
    for before in (prompt, *_TEXTS_BEFORE):
        before_ids, whole_ids = text_ids(tokenizer, before), text_ids(tokenizer, before + text)
        if whole_ids[: len(before_ids)] == before_ids:
            return whole_ids[len(before_ids) :]
    return text_ids(tokenizer, text)


@torch.inference_mode()
def continuation_scores(
    model: Any, prompt_ids: list[int], continuations: list[list[int]], length_penalty: float
) -> list[float]:
    """Return the student's score of each continuation of the prompt in nats. All arguments are token ids.

    Raise StudentContextError when a continuation does not fit into the student's context after the prompt, and
    BrokenStudentError when a score is NaN. A candidate with a token of probability 0 has score −inf.
    """
    needed = len(prompt_ids) + max(map(len, continuations)) - 1
    if needed > context_length_of(model):
        raise StudentContextError(model.name_or_path, context_length_of(model), needed, "prompt and candidate")
    batch = text_batch(prompt_ids, continuations, model.device, num_vocabulary_rows(model))
    hidden_PD = hidden_states(model, batch.input_ids, batch.position_ids)[batch.is_target]
    logprobs_P = token_logprobs(hidden_PD, output_head(model), batch.label_ids)
    lengths = torch.tensor([len(ids) for ids in continuations])
    sums = torch.stack([part.sum() for part in torch.split(logprobs_P, lengths.tolist())])
    scores_N = length_normalised_scores(sums.cpu(), lengths, length_penalty)
    if bool(scores_N.isnan().any()):
        raise BrokenStudentError(model.name_or_path)
    scores: list[float] = scores_N.tolist()
    return scores


def trained_length_penalty(student: Path) -> float:
    """Return the length penalty that the student was trained with, 1 if without beams; raise as read_run does."""
    found = read_run(student).get("length_penalty")
    if not isinstance(found, int | float | None):
        raise CheckpointError(str(student / RUN_NAME), "its length_penalty is not a number")
    return 1.0 if found is None else float(found)
