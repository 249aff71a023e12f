"""Distillation losses for anyone's loop: from hidden states, or from logits."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from storage.rows.soft_targets import TEMPERED_PREFIX, tempered_column
from storage.tensors.output_head import OutputHead
from student.loops.errors import BatchShapeError, BatchTemperatureError
from student.losses.divergences import Divergence
from student.losses.fused_head import HeadLoss, fused_head_loss
from student.losses.logits_loss import logits_loss
from student.losses.targets import SparseTargets

# A label that no loss is computed for; the number that torch and transformers use.
IGNORED_LABEL = -100


def distillation_loss(
    hidden: Tensor,
    head_weight: Tensor,
    batch: Mapping[str, Tensor],
    *,
    divergence: Divergence = "forward_kl",
    temperature: float = 1.0,
    label_weight: float = 0.0,
    num_targets: float | Tensor | None = None,
    head_bias: Tensor | None = None,
    logit_scale: float = 1.0,
    logit_cap: float | None = None,
) -> Tensor:
    """Return the loss from hidden states, a scalar in nats, without ever holding logits of [B·T, V].

    The loss is, in nats, the mean over the batch's wanted targets of

        T² · soft loss + label_weight · next-token loss.

    p is the teacher's distribution at a position and s the student's, both at temperature T: p ∝ p₁^(1/T), and
    s = softmax(z/T) of the student's logits z. The next-token loss is −log softmax(z) at the label, always at
    temperature 1. The soft loss is

    - forward_kl, where the batch has tail_ids: −Σ q log s. Here q is p on the head, and tail_weight on each id drawn
      from the tail (systematic sampling, Madow 1949). E[q] = p, so in expectation it is the cross-entropy −Σ p log s
      over the whole vocabulary, KL(p‖s) + H(p), with the gradient of full distillation. At T = 1, subtract the mean of
      the batch's `entropy` at wanted positions to get the KL.
    - otherwise a divergence between the distributions over the head's ids and one more outcome, all other ids. It is at
      most the divergence over the whole vocabulary. forward_kl: KL(P‖Q); reverse_kl: KL(Q‖P) (MiniLLM, Gu et al. 2024,
      equation 1); jsd: ½ KL(P‖M) + ½ KL(Q‖M), M = ½ (P + Q) (GKD, Agarwal et al. 2024, equation 2); skew_kl: KL(P‖M),
      M = 0.1 P + 0.9 Q (DistiLLM, Ko et al. 2024, equation 3).

    The factor T² keeps gradients at the same scale for all T (Hinton et al. 2015, section 2). A batch of samples has
    labels alone; its loss is the mean of the next-token loss, whatever the other settings.

    hidden [B, T, D]: what the model's body returns for input_ids and position_ids, after its last norm;
    head_weight [V, D]: weight of the output head, `model.get_output_embeddings().weight`; batch: an item of
    CacheDataset on the same device. The loss has gradients with respect to hidden, head_weight and head_bias. It is
    float64 for float64 hidden states, else float32; products have autocast's dtype where autocast is on.

    temperature: that of the CacheDataset; num_targets: what to divide the sum over the batch's wanted targets by, None
    for their number (1 if there are none). head_bias [V], logit_scale and logit_cap (nats) are those of the model's
    head, whose logits are cap · tanh(scale · (hidden · weightᵀ + bias) / cap).

    For a mean over all targets of W processes and A accumulated batches, give each call
    num_targets = (number of labels that are not −100, over all of these batches and processes) / W, because DDP and
    FSDP average gradients over processes, and do not divide by A again.

    torch.compile leaves the loss out of its graph, because the number of wanted targets is not known before; so
    fullgraph=True fails. Under DDP and FSDP, call this inside the forward pass of the wrapped module, because that is
    where they gather parameters and prepare to reduce gradients: wrap a module whose forward pass runs body and loss.

    Raise BatchShapeError when hidden states are not those of the batch, and BatchTemperatureError when the batch was
    made for another temperature.
    """
    is_wanted = _wanted_positions("hidden", hidden, batch)
    head = OutputHead(weight_VD=head_weight, bias_V=head_bias, scale=logit_scale, cap_nats=logit_cap)
    loss = _head_loss(batch, divergence, temperature, label_weight)
    total, _, _ = fused_head_loss(hidden[is_wanted], head, _targets(batch, is_wanted, temperature), loss)
    return total / _divisor(is_wanted, num_targets)


def distillation_loss_from_logits(
    logits: Tensor,
    batch: Mapping[str, Tensor],
    *,
    divergence: Divergence = "forward_kl",
    temperature: float = 1.0,
    label_weight: float = 0.0,
    num_targets: float | Tensor | None = None,
) -> Tensor:
    """Return the loss from logits [B, T, V] at all positions, a scalar in nats, equal to distillation_loss.

    The other arguments are those of distillation_loss. It needs memory for the gradient of the logits, in their dtype,
    and float32 for some thousand positions at a time. It is float64 for float64 logits, else float32.

    Raise BatchShapeError and BatchTemperatureError as distillation_loss does.
    """
    is_wanted = _wanted_positions("logits", logits, batch)
    loss = _head_loss(batch, divergence, temperature, label_weight)
    total = logits_loss(logits, is_wanted, _targets(batch, is_wanted, temperature), loss)
    return total / _divisor(is_wanted, num_targets)


def _wanted_positions(what: str, given: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    labels = batch["labels"]
    if given.dim() != 3 or given.shape[:2] != labels.shape:
        raise BatchShapeError(what, tuple(given.shape), tuple(labels.shape))
    return labels != IGNORED_LABEL


def _divisor(is_wanted: Tensor, num_targets: float | Tensor | None) -> float | Tensor:
    return is_wanted.sum().clamp(min=1) if num_targets is None else num_targets


def _head_loss(batch: Mapping[str, Tensor], divergence: str, temperature: float, label_weight: float) -> HeadLoss:
    if "head_ids" not in batch:
        return HeadLoss(divergence=divergence, unbiased=False, temperature=1.0, soft_weight=0.0, label_weight=1.0)
    return HeadLoss(
        divergence=divergence,
        unbiased=divergence == "forward_kl" and "tail_ids" in batch,
        temperature=temperature,
        soft_weight=1.0,
        label_weight=label_weight,
    )


def _targets(batch: Mapping[str, Tensor], is_wanted: Tensor, temperature: float) -> SparseTargets:
    """Return the targets of the wanted positions; raise BatchTemperatureError."""
    labels = batch["labels"][is_wanted]
    if "head_ids" not in batch:
        return SparseTargets.labels_only(labels)
    found = [name for name in batch if name.startswith(TEMPERED_PREFIX)]
    tempered = tempered_column(temperature)
    if found != ([] if temperature == 1.0 else [tempered]):
        raise BatchTemperatureError(temperature, ", ".join(n.removeprefix(TEMPERED_PREFIX) for n in found) or "1")
    no_ids = labels.new_zeros((len(labels), 0))
    is_sampled = "tail_ids" in batch
    return SparseTargets(
        head_ids=batch["head_ids"][is_wanted],
        head_logprobs=batch["head_logprobs"][is_wanted],
        is_head=batch["is_head"][is_wanted],
        tail_logprob=batch["tail_logprob"][is_wanted],
        tail_ids=batch["tail_ids"][is_wanted] if is_sampled else no_ids,
        is_drawn=batch["is_drawn"][is_wanted] if is_sampled else no_ids.bool(),
        tail_weight=batch["tail_weight"][:, None].expand_as(is_wanted)[is_wanted][:, None] if is_sampled else None,
        tempered_tail_logmass=batch[tempered][is_wanted] if found else None,
        label_ids=labels,
    )
