"""Check the targets of a text that another tool wrote, and complete them by the mass of the tail.

Shape legend: T targets, E entries.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from storage.importing.alignment import describe_shift
from storage.importing.errors import ImportRowError, MisalignedRowError
from storage.importing.source_text import Bools, CheckedText, Floats, Int64s, SourceText

# Sources state float32 numbers, whose sum does not show a smaller tail. Losses need one above 0.
_LEAST_TAIL_MASS = 2.0**-24
# Sums of float32 probabilities are off by about this much; a larger excess over 1 is told.
_FLOAT32_NOISE = 1e-5
# How far the two numbers that a source states for one token may differ: as a share, and in nats.
_LABEL_TOLERANCE = 0.01


def checked(text: SourceText, vocab_size: int, mass_tolerance: float) -> CheckedText:
    """Return the text with sound targets.

    Entries without probability (−∞) count as part of the tail. Let S be the mass of a target's entries. The tail is
    1 − S, at least 2^−24, and 0 when the entries are the whole vocabulary. S up to 1 + mass_tolerance is scaled to 1.

    Raise MisalignedRowError when the lists do not belong to the tokens, ImportRowError for anything else that is wrong.
    """
    _check_input_ids(text, vocab_size)
    text = _sorted(_entries_where(text, text.is_wanted[text.target_of_entry] & (text.logprobs != -np.inf)))
    _check_entries(text, vocab_size, mass_tolerance)
    target_E = text.target_of_entry
    mass_T = np.bincount(target_E, weights=np.exp(text.logprobs), minlength=len(text.size)).astype(np.float64)
    _check_mass(text, mass_T, vocab_size, mass_tolerance)
    label_logprob_T = _label_logprob(text)
    excess_T = np.log(np.maximum(mass_T, 1.0))
    tail_T = np.log1p(-np.minimum(mass_T, 1 - _LEAST_TAIL_MASS))
    return CheckedText(
        input_ids=text.input_ids,
        is_wanted=text.is_wanted,
        size=text.size,
        ids=text.ids,
        logprobs=np.minimum(text.logprobs - excess_T[target_E], 0.0),
        tail_logprob=np.where(text.is_wanted, np.where(text.size == vocab_size, -np.inf, tail_T), 0.0),
        label_logprob=np.minimum(np.where(text.is_wanted, label_logprob_T - excess_T, 0.0), 0.0),
        num_scaled=int((mass_T > 1 + _FLOAT32_NOISE).sum()),
    )


def _entries_where(text: SourceText, is_kept_E: Bools) -> SourceText:
    size_T = np.bincount(text.target_of_entry[is_kept_E], minlength=len(text.size))
    return dataclasses.replace(text, size=size_T, ids=text.ids[is_kept_E], logprobs=text.logprobs[is_kept_E])


def _sorted(text: SourceText) -> SourceText:
    order_E = np.lexsort((text.ids, text.target_of_entry))
    return dataclasses.replace(text, ids=text.ids[order_E], logprobs=text.logprobs[order_E])


def _check_input_ids(text: SourceText, vocab_size: int) -> None:
    wrong = np.flatnonzero((text.input_ids < 0) | (text.input_ids >= vocab_size))
    if len(wrong):
        found = text.input_ids[wrong[0]]
        raise ImportRowError(
            text.where,
            f"token {wrong[0]} is id {found}, expected one below {vocab_size:,}: name the teacher's tokenizer, or its "
            "--vocab-size",
        )


def _check_entries(text: SourceText, vocab_size: int, mass_tolerance: float) -> None:
    if len(missing := np.flatnonzero(text.is_wanted & (text.size == 0))):
        raise ImportRowError(
            text.where, f"position {missing[0] + text.first_position}: lists nothing, expected log-probabilities"
        )
    is_wrong_E = (text.ids < 0) | (text.ids >= vocab_size)
    _refuse_entries(text, is_wrong_E, f"is no id of the vocabulary of {vocab_size:,}")
    is_twice_E = np.zeros(len(text.ids), np.bool_)
    is_twice_E[1:] = (text.ids[1:] == text.ids[:-1]) & (np.diff(text.target_of_entry) == 0)
    _refuse_entries(text, is_twice_E, "is listed twice")
    is_wrong_E = ~(text.logprobs <= np.log1p(mass_tolerance))
    _refuse_entries(text, is_wrong_E, "has that log-probability, expected a number of at most 0")


def _refuse_entries(text: SourceText, is_wrong_E: Bools, problem: str) -> None:
    if not is_wrong_E.any():
        return
    entry = int(np.flatnonzero(is_wrong_E)[0])
    position = text.target_of_entry[entry] + text.first_position
    raise ImportRowError(
        text.where, f"position {position}: id {text.ids[entry]} with {text.logprobs[entry]:.6g} nats {problem}"
    )


def _check_mass(text: SourceText, mass_T: Floats, vocab_size: int, mass_tolerance: float) -> None:
    lacks_T = (text.size == vocab_size) & (mass_T < 1 - max(mass_tolerance, _FLOAT32_NOISE))
    wrong = np.flatnonzero((mass_T > 1 + max(mass_tolerance, _FLOAT32_NOISE)) | lacks_T)
    if len(wrong):
        expected = "1, for all ids are listed" if lacks_T[wrong[0]] else "at most 1"
        raise ImportRowError(
            text.where,
            f"position {wrong[0] + text.first_position}: the probabilities of its {text.size[wrong[0]]} ids add up to "
            f"{mass_T[wrong[0]]:.6g}, expected {expected} (--mass-tolerance {mass_tolerance:g}): are they logits, or "
            "of another temperature?",
        )


def _label_logprob(text: SourceText) -> Floats:
    """Return the log-probability of each target's label [T]: the listed one, else the stated one, else NaN."""
    target_E, labels_T = text.target_of_entry, text.input_ids[1:]
    is_label_E = text.ids == labels_T[target_E]
    is_listed_T = _any_per_target(is_label_E, target_E, len(text.size))
    listed_T = np.bincount(target_E, weights=np.where(is_label_E, text.logprobs, 0.0), minlength=len(text.size))
    stated_T = text.label_logprob
    if text.lists_labels and len(missing := np.flatnonzero(text.is_wanted & ~is_listed_T)):
        raise MisalignedRowError(
            text.where,
            f"position {missing[0] + text.first_position}: does not list the token that stands there "
            f"(id {labels_T[missing[0]]}), as servers do; {describe_shift(text)}",
        )
    differs_T = np.abs(listed_T - stated_T) > _LABEL_TOLERANCE * (1 + np.abs(stated_T))
    if len(wrong := np.flatnonzero(text.is_wanted & is_listed_T & differs_T)):
        raise MisalignedRowError(
            text.where,
            f"position {wrong[0] + text.first_position}: its own log-probability is {stated_T[wrong[0]]:.4g}, its list "
            f"gives the same token {listed_T[wrong[0]]:.4g}; {describe_shift(text)}",
        )
    if len(wrong := np.flatnonzero(text.is_wanted & ((stated_T > _FLOAT32_NOISE) | np.isinf(stated_T)))):
        raise ImportRowError(
            text.where,
            f"position {wrong[0] + text.first_position}: its own log-probability is {stated_T[wrong[0]]:.4g}, expected "
            "a number of at most 0",
        )
    return np.where(is_listed_T, listed_T, stated_T)


def _any_per_target(flags_E: Bools, target_E: Int64s, num_targets: int) -> Bools:
    return np.bincount(target_E[flags_E], minlength=num_targets) > 0
