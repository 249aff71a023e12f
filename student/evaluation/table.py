"""The results of `evaluate` as text: groups of figures, student beside teacher, each with its interval.

tabulate, which only the extra evaluate installs, sizes the columns of one table. These groups share their columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_LABEL_WIDTH = 28
_CELL_WIDTH = 30
_NOTHING = "–"


def render(found: dict[str, Any]) -> str:
    """Return the groups that the cache has rows for, as lines of text."""
    groups = [part(found) for part in (_next_token, _calibration, _kl_bins, _candidates, _speculation, _texts)]
    heading = f"{found['num_parameters']:,} parameters, {found['model_bytes']:,} bytes of weights"
    columns = f"{'[95 % intervals]':<{_LABEL_WIDTH}}{'student':<{_CELL_WIDTH}}teacher"
    return "\n\n".join([heading, columns, *("\n".join(line.rstrip() for line in group) for group in groups if group)])


def _next_token(found: dict[str, Any]) -> list[str]:
    if not found["num_targets"]:
        return []
    lines = [
        f"Next token, {found['num_targets']:,} held-out targets in {found['num_blocks']:,} blocks",
        _line(
            "perplexity", _with_interval(found, "perplexity", ".2f"), _with_interval(found, "teacher_perplexity", ".2f")
        ),
        _line("KL from the teacher, nats", _with_interval(found, "kl_nats", ".4f")),
        _line("top-1 agreement", _with_interval(found, "top1_agreement", ".3f")),
        _line("top-5 agreement", _with_interval(found, "top5_agreement", ".3f")),
    ]
    if found.get("lost_mass"):
        share = f"{100 * found['lost_mass']:.3g} %"
        lines.append(f"  {share} of the teacher's probability is on ids without a row in the student, and left out")
    if found["kl_is_lower_bound"]:
        lines.append("  KL is a lower bound: the cache tells nothing about the inside of the teacher's tail")
    return lines


def _calibration(found: dict[str, Any]) -> list[str]:
    calibration = found["calibration"]
    if not calibration:
        return []
    student, teacher = calibration["student"], calibration["teacher"]
    return [
        "Calibration: how far confidence is from the share that is right",
        *(
            _line(label, _plain(student, name, ".4f"), _plain(teacher, name, ".4f"))
            for label, name in (
                ("expected error", "expected_calibration_error"),
                ("by chance alone, about", "expected_calibration_error_by_chance"),
            )
        ),
    ]


def _kl_bins(found: dict[str, Any]) -> list[str]:
    if not found["num_targets"]:
        return []
    by_position = {_span(b["first_position"], b["last_position"]): b for b in found["kl_by_position"]}
    lines = ["KL by position in the document's piece", *_bin_lines(by_position), ""]
    if found["kl_by_entropy"] is None:
        return [*lines, "KL by the teacher's entropy: not known, for the cache does not know the entropy"]
    by_entropy = {f"{b['low_nats']:.1f} to {b['high_nats']:.1f} nats": b for b in found["kl_by_entropy"]}
    return [*lines, "KL by the teacher's entropy", *_bin_lines(by_entropy)]


def _bin_lines(bins: dict[str, dict[str, Any]]) -> Iterator[str]:
    for label, values in bins.items():
        error = values["kl_standard_error"]
        kl = f"{values['kl_nats']:.4f}" + ("" if error is None else f" ± {error:.4f}")
        yield _line(label, kl, f"{values['num_targets']:,} targets")


def _candidates(found: dict[str, Any]) -> list[str]:
    if not found["num_selections"]:
        return []
    lines = [f"Ranking the teacher's candidates for {found['num_selections']:,} held-out prompts"]
    for label, name, chance in (
        ("best one chosen", "selection_accuracy", found["selection_chance"]),
        ("mean reciprocal rank", "mean_reciprocal_rank", found["mean_reciprocal_rank_chance"]),
        ("Kendall's tau", "kendall_tau", 0.0),
    ):
        lines.append(_line(label, _with_interval(found, name, ".3f"), f"by chance {chance:.3f}"))
    return lines


def _speculation(found: dict[str, Any]) -> list[str]:
    if found["no_acceptance_because"]:
        return [f"Speculative decoding: not known, for {found['no_acceptance_because']}"]
    if not found["num_sampled_tokens"]:
        return []
    return [
        f"Speculative decoding with this student, from {found['num_sampled_tokens']:,} tokens of held-out texts",
        _line("draft tokens accepted", _with_interval(found, "acceptance", ".3f")),
        _line(
            "tokens per teacher step", _with_interval(found, "tokens_per_teacher_step", ".2f"), "5 at most, drafts of 4"
        ),
    ]


def _texts(found: dict[str, Any]) -> list[str]:
    generation = found["generation"]
    if not generation:
        return []
    student, teacher = generation["student"], generation["teacher"]
    figures = (
        ("distinct-1", "distinct_1", ".3f"),
        ("distinct-2", "distinct_2", ".3f"),
        ("distinct-3", "distinct_3", ".3f"),
        ("self-BLEU", "self_bleu", ".4f"),
        ("repetition rate", "repetition_rate", ".4f"),
        ("length in tokens", "mean_length_tokens", ".1f"),
        ("vocabulary coverage", "vocabulary_coverage", ".4f"),
    )
    return [
        f"Texts, {student['num_texts']:,} by each for the same held-out prompts",
        *(
            _line(label, _with_interval(student, name, form), _with_interval(teacher, name, form))
            for label, name, form in figures
        ),
        "  more distinct and less self-BLEU is more diverse; both, and coverage, depend on the number of texts",
    ]


def _span(first: int, last: int) -> str:
    return f"{first}" if first == last else f"{first} to {last}"


def _line(label: str, student: str, teacher: str = "") -> str:
    return f"{'  ' + label:<{_LABEL_WIDTH}}{student:<{_CELL_WIDTH}}{teacher}"


def _plain(figures: dict[str, Any] | None, name: str, form: str) -> str:
    value = (figures or {}).get(name)
    return _NOTHING if value is None else f"{value:{form}}"


def _with_interval(figures: dict[str, Any], name: str, form: str) -> str:
    ends = figures[f"{name}_interval"]
    value = _plain(figures, name, form)
    return value if ends is None else f"{value} [{ends[0]:{form}}, {ends[1]:{form}}]"
