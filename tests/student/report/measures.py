"""What student.evaluate finds, made up."""

from __future__ import annotations

from typing import Any


def made_up_measures(**changes: Any) -> dict[str, Any]:
    """Every figure of a student that is clearly behind its teacher."""
    bins = [
        {
            "low": k / 15,
            "high": (k + 1) / 15,
            "num_targets": 10 + k,
            "mean_confidence": (k + 0.5) / 15,
            "accuracy": k / 15,
        }
        for k in range(15)
    ]
    texts = {
        "num_texts": 64, "distinct_1": 0.4, "distinct_2": 0.81, "distinct_3": 0.9, "self_bleu": 0.12,
        "repetition_rate": 0.01, "vocabulary_coverage": 0.2, "mean_length_tokens": 44.5,
    }  # fmt: skip
    texts |= {f"{name}_interval": [value * 0.95, value * 1.05] for name, value in texts.items() if name != "num_texts"}
    return {
        "num_parameters": 250_000, "model_bytes": 1_000_000, "num_blocks": 93, "num_targets": 11_864,
        "perplexity": 100.25, "perplexity_interval": [91.5, 110.75],
        "teacher_perplexity": 50.125, "teacher_perplexity_interval": [45.25, 55.5],
        "kl_nats": 0.5, "kl_standard_error": 0.01, "kl_nats_interval": [0.48, 0.52], "kl_is_lower_bound": False,
        "top1_agreement": 0.56, "top1_agreement_interval": [0.55, 0.57],
        "top5_agreement": 0.84, "top5_agreement_interval": [0.83, 0.85],
        "selection_accuracy": 0.625, "selection_accuracy_interval": [0.47, 0.78], "selection_chance": 0.25,
        "num_selections": 32, "mean_reciprocal_rank": 0.77, "mean_reciprocal_rank_interval": [0.67, 0.87],
        "kendall_tau": 0.47, "kendall_tau_interval": [0.32, 0.6],
        "acceptance": 0.715, "acceptance_interval": [0.69, 0.74], "num_sampled_tokens": 2_048,
        "tokens_per_teacher_step": 2.87, "tokens_per_teacher_step_interval": [2.75, 2.99],
        "no_acceptance_because": None,
        "kl_by_position": [
            {"first_position": f, "last_position": t, "num_targets": n, "kl_nats": k, "kl_standard_error": e}
            for f, t, n, k, e in ((0, 0, 90, 0.6, 0.05), (1, 1, 90, 0.55, None), (2, 3, 180, 0.5, 0.02))
        ],
        "kl_by_entropy": [
            {"low_nats": low, "high_nats": low + 0.5, "num_targets": 9, "kl_nats": low / 5, "kl_standard_error": 0.01}
            for low in (0.0, 0.5, 2.0)
        ],
        "calibration": {
            "student": {"expected_calibration_error": 0.015, "bins": bins},
            "teacher": {"expected_calibration_error": 0.011, "bins": bins[:4]},
        },
        "generation": {"student": texts, "teacher": texts | {"distinct_2": 0.82}},
    } | changes  # fmt: skip


TEACHER = {"id": "big", "num_parameters": 1_000_000, "weights_bytes": 4_000_000}
