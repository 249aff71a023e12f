"""All measures of a student, and the few that are cheap enough to take during training."""

from __future__ import annotations

import math
import sys
from typing import Any

import torch

from storage.reading.cache import Cache, open_cache
from storage.tensors.model_facts import num_parameters
from student.config import EvaluateConfig
from student.errors import BrokenStudentError, NoHeldOutRowsError
from student.evaluation.acceptance import measure_acceptance
from student.evaluation.blocks import (
    block_details,
    block_figures,
    block_sums,
    joined_sums,
    measured_batches,
    tail_weight_at_one,
)
from student.evaluation.breakdowns import Breakdowns
from student.evaluation.continuations import SamplingSettings
from student.evaluation.ranking import rank_prompts, ranking_details, selection_figures
from student.evaluation.texts import measure_generation
from student.model.device import choose_device
from student.model.fitting import load_fitting_student
from student.model.loading import weights_bytes
from student.run_record import is_of_other_rows, read_run

_NUM_BEST = 5


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Measure a saved student on the validation split; see evaluate_loaded.

    Raises NoSuchStudentError, BrokenStudentError, VocabularyMismatchError, TokenizerMismatchError, StudentContextError,
    a CacheError, or the errors of evaluate_loaded.
    """
    cache = open_cache(config.cache)
    model = load_fitting_student(config.student, cache).to(choose_device(config.device)).eval()
    return evaluate_loaded(model, cache, config)


@torch.inference_mode()
def evaluate_loaded(model: Any, cache: Cache, config: EvaluateConfig) -> dict[str, Any]:
    """Measure the student of config.student on the validation split of config.cache, both opened already.

    Return the measures of `evaluate_model` over all blocks, and those below. As there, some may be None.

    - model_bytes: size of the weights' files
    - num_blocks: blocks measured
    - top5_agreement: share of positions with a head where the teacher's most probable token is among the student's five
    - kl_by_position: KL by the position in the document's piece, that is, by how much the model has read
    - kl_by_entropy: KL by the teacher's entropy, None when the cache does not know that
    - calibration: expected calibration error of "student" and "teacher" (see student.evaluation.calibration)
    - mean_reciprocal_rank: mean over prompts of 1 / the rank of the teacher's best candidate in the student's ranking
    - mean_reciprocal_rank_chance: the same for a random ranking
    - kendall_tau: mean over prompts of τ_b of the student's and the teacher's scores
    - generation: figures of the texts of "student" and "teacher" (see student.evaluation.texts)
    - acceptance, tokens_per_teacher_step, num_sampled_tokens, no_acceptance_because: what speculative decoding with
      this student would save (see student.evaluation.acceptance)
    - NAME_interval: [low, high], 95 %, with blocks or prompts as independent draws; None for fewer than two

    Raises NoHeldOutRowsError, BrokenStudentError or a CacheError.
    """
    if not cache.held_kinds("validation"):
        raise NoHeldOutRowsError(str(config.cache))
    if not config.quiet and is_of_other_rows(read_run(config.student), cache):
        print(
            f"{config.student}: trained on other rows than this cache's: "
            "what is held out here may be what it learnt from",
            file=sys.stderr,
        )
    writes_texts = config.num_prompts > 0 and cache.num_rows("samples", "validation") > 0
    sampling = SamplingSettings.of_cache(cache) if writes_texts else None
    found: dict[str, Any] = {"num_parameters": num_parameters(model), "model_bytes": weights_bytes(config.student)}
    found |= _evaluate_blocks(model, cache, config)
    if found["kl_nats"] is not None and math.isnan(found["kl_nats"]):
        raise BrokenStudentError(str(config.student))
    found |= measure_acceptance(model, cache, quiet=config.quiet)
    ranked_BM = rank_prompts(model, cache)
    found |= selection_figures(ranked_BM) | ranking_details(ranked_BM)
    found["generation"] = sampling and measure_generation(
        model, cache, sampling, num_prompts=config.num_prompts, quiet=config.quiet
    )
    return found


@torch.no_grad()  # not inference_mode: FSDP2 would keep its tensors for training
def evaluate_model(
    model: Any, cache: Cache, *, batch_blocks: int = 16, max_blocks: int | None = None, quiet: bool = True
) -> dict[str, Any]:
    """Measure a student on the first blocks of the validation split, at most max_blocks, and on all its prompts.

    - num_parameters: parameters of the student
    - num_targets: valid positions measured
    - perplexity, teacher_perplexity: of student and teacher, on the same real tokens; the teacher's is None when the
      cache does not know its probabilities of them
    - kl_nats: mean KL(teacher‖student) per token, nats. With a sampled tail it is cross-entropy minus the teacher's
      entropy, which is unbiased. Otherwise it is the divergence on the head and the tail's mass, a lower bound.
    - kl_is_lower_bound: whether kl_nats is a lower bound
    - lost_mass: share of the teacher's probability on stored ids for which the student has no row, absent when it is 0.
      They are left out of kl_nats; without a sampled tail, they count as part of the tail there.
    - kl_standard_error: of kl_nats, with blocks as the independent draws, because positions that share a context are
      not independent; None for one block
    - top1_agreement: share of positions with a head where student and teacher have the same most probable token
    - selection_accuracy: share of prompts for which the student gives the teacher's best candidate the highest score
    - selection_chance: the same for a random choice
    - num_selections: prompts with at least two candidates; the two measures above are over these

    Other measures than num_selections are None when the cache has no rows for them, or its blocks have no valid target.
    """
    found: dict[str, Any] = {"num_parameters": num_parameters(model)}
    sums_BM, tail_weight = None, None
    if cache.num_rows("soft_targets", "validation"):
        tail_weight = tail_weight_at_one(cache)
        batches = measured_batches(
            model, cache, num_best=1, batch_blocks=batch_blocks, max_blocks=max_blocks, quiet=quiet
        )
        sums_BM = joined_sums([block_sums(*pair) for pair in batches])
    return found | block_figures(sums_BM, tail_weight) | selection_figures(rank_prompts(model, cache))


def _evaluate_blocks(model: Any, cache: Cache, config: EvaluateConfig) -> dict[str, Any]:
    """Return every figure about positions, from one pass over the blocks."""
    nothing: dict[str, Any] = dict.fromkeys(("kl_by_position", "kl_by_entropy", "calibration"), None)
    nothing |= block_figures(None, None) | block_details(None)
    if not cache.num_rows("soft_targets", "validation"):
        return nothing
    breakdowns = Breakdowns(cache.identity.block_size, cache.identity.vocab_size)
    sums = []
    for batch, measures in measured_batches(
        model, cache, num_best=_NUM_BEST, batch_blocks=config.batch_blocks, max_blocks=None, quiet=config.quiet
    ):
        sums.append(block_sums(batch, measures))
        breakdowns.add(batch, measures)
    sums_BM = joined_sums(sums)
    if sums_BM is None:
        return nothing
    return block_figures(sums_BM, tail_weight_at_one(cache)) | block_details(sums_BM) | breakdowns.figures()
