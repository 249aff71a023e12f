"""How close a student is to the cached teacher, measured without the teacher."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from storage.cache import Cache, open_cache
from storage.progress import Progress
from student.batches import BlockBatch, beam_batch, block_batch
from student.config import EvaluateConfig
from student.losses.divergences import forward_kl
from student.losses.head_matmul import chunk_positions_on
from student.losses.targets import SparseTargets
from student.model import check_fits, choose_device, head_weight, hidden_states, load_student, num_parameters
from student.objective import candidate_scores, soft_target_settings


@dataclass(frozen=True, kw_only=True)
class PositionMeasures:
    """Per valid position [P], in nats: the student's next-token loss, its KL from the teacher; and agreement.

    has_top1 marks positions where the head holds the teacher's most probable token.
    """

    label_nll: Tensor
    kl: Tensor
    agrees: Tensor
    has_top1: Tensor


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Measures of a saved student on the validation split (see evaluate_model).

    Raises NoSuchStudentError, VocabularyMismatchError or a CacheError.
    """
    cache = open_cache(config.cache)
    model = load_student(config.student).to(choose_device(config.device)).eval()
    check_fits(model, cache, str(config.student))
    return evaluate_model(model, cache, batch_blocks=config.batch_blocks, quiet=config.quiet)


@torch.inference_mode()
def evaluate_model(
    model: Any, cache: Cache, *, batch_blocks: int = 16, max_blocks: int | None = None, quiet: bool = True
) -> dict[str, Any]:
    """Measures on the validation split, in order, of at most max_blocks blocks.

    perplexity and teacher_perplexity on the same real tokens; kl_nats = mean KL(teacher‖student) per
    token: cross-entropy minus the teacher's entropy where the tail was sampled (unbiased), else the
    divergence on head and tail, a lower bound (kl_is_lower_bound); kl_standard_error of that mean with
    blocks as the independent draws, because positions that share a context are none (None for one block);
    top1_agreement; selection_accuracy and selection_chance over prompts with at least two candidates.
    A measure that the cache has no rows for is None.
    """
    found: dict[str, Any] = {"num_parameters": num_parameters(model)}
    return found | _evaluate_blocks(model, cache, batch_blocks, max_blocks, quiet) | _evaluate_selection(model, cache)


def measure_positions(model: Any, batch: BlockBatch) -> PositionMeasures:
    """Measures of one batch of blocks."""
    hidden_PD = hidden_states(model, batch.input_ids, batch.position_ids)[batch.is_valid]
    size = chunk_positions_on(hidden_PD.device)
    parts = []
    for start in range(0, len(hidden_PD), size):
        logits_CV = hidden_PD[start : start + size].float() @ head_weight(model).T.float()
        part = slice(start, start + size)
        parts.append(_measure_chunk(torch.log_softmax(logits_CV, dim=1), batch.targets.slice(part.start, part.stop)))
    label_nll, kl, agrees, has_top1 = (torch.cat(values) for values in zip(*parts, strict=True))
    if batch.targets.tail_weight is not None:
        kl = kl - batch.entropy
    return PositionMeasures(label_nll=label_nll, kl=kl, agrees=agrees, has_top1=has_top1)


def _measure_chunk(logs_CV: Tensor, targets: SparseTargets) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    label_nll_C = -logs_CV.gather(1, targets.label_ids[:, None])[:, 0]
    best_C1 = logs_CV.argmax(dim=1, keepdim=True)
    if targets.head_ids.shape[1] == 0:
        none_C = torch.zeros_like(targets.label_ids, dtype=torch.bool)
        return label_nll_C, _kl_or_cross_entropy(logs_CV, targets), none_C, none_C
    # Rounding makes ties in the head; the student agrees when its best is one of the teacher's best.
    top_C1 = targets.head_logprobs.masked_fill(~targets.is_head, -torch.inf).amax(1, keepdim=True)
    is_best_CK = targets.is_head & (targets.head_logprobs == top_C1)
    agrees_C = (is_best_CK & (targets.head_ids == best_C1)).any(1)
    # The head is a set of largest probabilities, so a head that is not empty holds the largest.
    return label_nll_C, _kl_or_cross_entropy(logs_CV, targets), agrees_C, targets.is_head.any(1)


def _kl_or_cross_entropy(logs_CV: Tensor, targets: SparseTargets) -> Tensor:
    if targets.tail_weight is not None:
        ids_CE, weights_CE = targets.sampled_weights(1.0)
        return -(weights_CE * logs_CV.gather(1, ids_CE)).sum(1)
    head_CK = logs_CV.gather(1, targets.head_ids).masked_fill(~targets.is_head, -torch.inf)
    masked_CV = logs_CV.scatter_add(
        1, targets.head_ids, torch.zeros_like(targets.head_logprobs).masked_fill(targets.is_head, -torch.inf)
    )
    logq_CO = torch.cat([head_CK, masked_CV.logsumexp(dim=1, keepdim=True)], dim=1)
    return forward_kl(targets.coarse_logprobs(1.0), logq_CO)[0]


def _evaluate_blocks(
    model: Any, cache: Cache, batch_blocks: int, max_blocks: int | None, quiet: bool
) -> dict[str, Any]:
    num_blocks = cache.num_rows("soft_targets", "validation")
    names = ("perplexity", "teacher_perplexity", "kl_nats", "kl_standard_error", "kl_is_lower_bound", "top1_agreement")
    if not num_blocks:
        return dict.fromkeys((*names, "num_targets"), None)
    settings = soft_target_settings(cache)
    # A tail drawn at another temperature is no estimate of the teacher at temperature 1.
    tail_weight = settings.tail_weight if settings.temperatures[0] == 1.0 else None
    sums = torch.zeros(5, dtype=torch.float64)
    kl_by_block: list[Tensor] = []
    targets_by_block: list[Tensor] = []
    with Progress(min(num_blocks, max_blocks or num_blocks), "evaluate", "blocks", quiet=quiet) as bar:
        for rows in _row_batches(cache, batch_blocks, max_blocks):
            batch = block_batch(rows, tail_weight=tail_weight, temperature=1.0, device=model.device)
            found = measure_positions(model, batch)
            sums += torch.tensor(
                [
                    found.label_nll.double().sum(),
                    -batch.label_logprob.double().sum(),
                    found.agrees.sum(),
                    found.has_top1.sum(),
                    len(found.kl),
                ]
            )
            block_P = batch.is_valid.nonzero()[:, 0]
            kl_by_block.append(torch.zeros(rows.num_rows).double().index_add(0, block_P.cpu(), found.kl.double().cpu()))
            targets_by_block.append(batch.is_valid.sum(1).double().cpu())
            bar.update(rows.num_rows)
    nll, teacher_nll, num_agree, num_top1, num_targets = sums.tolist()
    mean_kl, standard_error = ratio_with_error(torch.cat(kl_by_block), torch.cat(targets_by_block))
    return {
        "perplexity": math.exp(nll / num_targets),
        "teacher_perplexity": math.exp(teacher_nll / num_targets),
        "kl_nats": mean_kl,
        "kl_standard_error": standard_error,
        "kl_is_lower_bound": tail_weight is None,
        "top1_agreement": num_agree / num_top1 if num_top1 else None,
        "num_targets": int(num_targets),
    }


def ratio_with_error(sums_B: Tensor, counts_B: Tensor) -> tuple[float, float | None]:
    """Σ sums / Σ counts and its standard error over independent blocks (Cochran 1977, chapter 6); None for one."""
    num_blocks, total = len(sums_B), float(counts_B.sum())
    ratio = float(sums_B.sum()) / total
    if num_blocks < 2:
        return ratio, None
    residuals_B = sums_B - ratio * counts_B
    return ratio, math.sqrt(float(residuals_B.square().sum()) * num_blocks / (num_blocks - 1)) / total


def _evaluate_selection(model: Any, cache: Cache) -> dict[str, Any]:
    if not cache.num_rows("beams", "validation"):
        return {"selection_accuracy": None, "selection_chance": None, "num_selections": 0}
    length_penalty = float(cache.setting("config", "beams", "length_penalty"))
    num_right, chance, num_prompts = 0, 0.0, 0
    for rows in cache.record_batches("beams", "validation"):
        batch = beam_batch(rows, model.device)
        scores_BN = candidate_scores(model, batch, length_penalty)
        num_candidates_B = (batch.teacher_scores > -torch.inf).sum(1)
        counted_B = num_candidates_B > 1
        num_right += int(((scores_BN.argmax(1) == batch.teacher_scores.argmax(1)) & counted_B).sum())
        chance += float((1 / num_candidates_B[counted_B].double()).sum())
        num_prompts += int(counted_B.sum())
    return {
        "selection_accuracy": num_right / num_prompts if num_prompts else None,
        "selection_chance": chance / num_prompts if num_prompts else None,
        "num_selections": num_prompts,
    }


def _row_batches(cache: Cache, batch_blocks: int, max_blocks: int | None) -> Iterator[pa.RecordBatch]:
    num_left = max_blocks
    for stored in cache.record_batches("soft_targets", "validation"):
        for start in range(0, stored.num_rows, batch_blocks):
            rows = stored.slice(start, batch_blocks if num_left is None else min(batch_blocks, num_left))
            yield rows
            if num_left is not None:
                num_left -= rows.num_rows
                if num_left <= 0:
                    return
