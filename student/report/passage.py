"""A held-out passage token by token, with the next tokens that teacher and students expected.

Shape legend: P targets of the passage, V vocabulary, A alternatives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from storage.pages.markup import Markup, element, join
from storage.pages.numbers import percent
from storage.pages.page import note
from storage.reading.cache import Cache
from storage.rows import soft_targets
from storage.rows.soft_targets import SoftTargetRows
from student.evaluation.positions import measure_positions
from student.losses.batches import block_batch
from student.losses.targets import SparseTargets
from student.model.architecture import hidden_states, num_vocabulary_rows, output_head
from student.report.runs import TextOf

_MOST_TARGETS = 160
# Targets to show before the first valid one: the end of a prompt, or of what the user said.
_MOST_BEFORE = 32
_ALTERNATIVES = 5
# page.css has tints for this number of students.
_MOST_TINTED = 6
# A tint begins at each of these KLs, in nats.
_HEAT_FROM_NATS = (0.1, 0.4, 1.0, 2.0)

Alternative = tuple[str, float]


@dataclass(frozen=True, kw_only=True)
class Opinion:
    """One model's prediction of a token: the token's probability, and the most probable tokens with theirs.

    The teacher's probability of the token is None when the cache lacks it.
    """

    probability: float | None
    alternatives: list[Alternative]


@dataclass(frozen=True, kw_only=True)
class PassageToken:
    """A token of the passage with the prediction of the teacher and of each student.

    kl_nats: each student's KL from the teacher over the head and the tail's mass, a lower bound.
    """

    text: str
    teacher: Opinion
    students: list[Opinion]
    kl_nats: list[float]


@dataclass(frozen=True, kw_only=True)
class Passage:
    """A piece of a document. first: its first token; tokens: those after it, as text where no prediction is wanted."""

    first: str
    tokens: list[PassageToken | str]


@torch.inference_mode()
def look_at_passage(models: Sequence[Any], cache: Cache, text_of: TextOf) -> Passage | None:
    """Predict the piece of a document with the most valid targets in the first record batch of the validation split.

    Begin at most _MOST_BEFORE targets before its first valid one. Return None without blocks, or when no piece has a
    valid target.
    """
    if not cache.num_rows("soft_targets", "validation"):
        return None
    stored = next(cache.record_batches("soft_targets", "validation"))
    row, shown_T = _choose_targets(soft_targets.decode(stored))
    if not len(shown_T):
        return None
    chosen = stored.slice(row, 1)
    # Without the sampled tail, whose noise dominates the KL of a single position.
    batch = block_batch(chosen, tail_weight=None, temperature=1.0, device=torch.device("cpu"))
    is_valid_T = batch.is_valid[0].numpy()
    num_before = int(is_valid_T[: shown_T[0]].sum())
    places = slice(num_before, num_before + int(is_valid_T[shown_T].sum()))
    targets = batch.targets.slice(places.start, places.stop)
    known = batch.label_logprob
    probabilities = [None] * len(targets) if known is None else known[places].exp().tolist()
    ids = soft_targets.decode(chosen).input_ids[0]
    first, valid_T = shown_T[0], shown_T[is_valid_T[shown_T]]

    def text_at(p: int, token_id: int) -> str:
        return text_of(ids[first : valid_T[p] + 1], (token_id,))

    teachers = _teachers_opinions(targets, probabilities, text_at)
    students = [_students_opinions(model, chosen, places, targets, text_at) for model in models]
    texts = [text_of(ids[first:t], ids[t : t + 1]) for t in [*shown_T, shown_T[-1] + 1]]
    predicted = iter(range(len(targets)))
    return Passage(
        first=texts[0],
        tokens=[
            PassageToken(
                text=text,
                teacher=teachers[p := next(predicted)],
                students=[opinions[p] for opinions, _ in students],
                kl_nats=[kl[p] for _, kl in students],
            )
            if is_valid
            else text
            for text, is_valid in zip(texts[1:], is_valid_T[shown_T], strict=True)
        ],
    )


def _choose_targets(rows: SoftTargetRows) -> tuple[int, NDArray[np.int64]]:
    """Return a row and the targets to show of it, which lie in one segment; none when no target is valid."""
    is_valid_RT, is_in_one_RT = rows.is_valid_target, rows.is_in_one_segment
    pieces = [
        (row, piece_T)
        for row, is_in_one_T in enumerate(is_in_one_RT)
        for piece_T in np.split(np.arange(len(is_in_one_T)), np.flatnonzero(~is_in_one_T))
    ]
    row, piece_T = max(pieces, key=lambda piece: is_valid_RT[piece[0], piece[1]].sum())
    piece_T = piece_T[is_in_one_RT[row, piece_T]]  # all but the last begin with the target between two segments
    valid_T = piece_T[is_valid_RT[row, piece_T]]
    if not len(valid_T):
        return row, valid_T
    begin = max(valid_T[0] - _MOST_BEFORE, piece_T[0])
    return row, piece_T[piece_T >= begin][:_MOST_TARGETS]


def _teachers_opinions(
    targets: SparseTargets, probabilities: Sequence[float | None], text_at: Callable[[int, int], str]
) -> list[Opinion]:
    """Return the head's most probable entries: the cache has no probabilities of tokens outside the head.

    text_at: the text of a token as the target's next one.
    """
    opinions = []
    for p, probability in enumerate(probabilities):
        ids = targets.head_ids[p][targets.is_head[p]].numpy()
        logprobs = targets.head_logprobs[p][targets.is_head[p]].numpy()
        best = np.argsort(-logprobs, kind="stable")[:_ALTERNATIVES]
        alternatives = [(text_at(p, ids[b]), float(np.exp(logprobs[b]))) for b in best]
        opinions.append(Opinion(probability=probability, alternatives=alternatives))
    return opinions


def _students_opinions(
    model: Any, row: Any, places: slice, targets: SparseTargets, text_at: Callable[[int, int], str]
) -> tuple[list[Opinion], list[float]]:
    num_rows = num_vocabulary_rows(model)
    batch = block_batch(row, tail_weight=None, temperature=1.0, device=model.device, num_rows=num_rows)
    kl = measure_positions(model, batch, num_best=1).kl[places].tolist()
    hidden_PD = hidden_states(model, batch.input_ids, batch.position_ids)[batch.is_valid][places]
    probs_PV = torch.softmax(output_head(model).logits(hidden_PD.float()), dim=1).cpu()
    best_PA, ids_PA = probs_PV.topk(min(_ALTERNATIVES, probs_PV.shape[1]), dim=1)
    label_P = probs_PV.gather(1, targets.label_ids[:, None])[:, 0]
    opinions = [
        Opinion(
            probability=float(label_P[p]),
            alternatives=[
                (text_at(p, token_id), probability)
                for token_id, probability in zip(ids_PA[p].tolist(), best_PA[p].tolist(), strict=True)
            ],
        )
        for p in range(len(targets))
    ]
    return opinions, kl


def passage_view(passage: Passage, names: Sequence[str]) -> Markup:
    """Return the passage, tinted by one student's KL.

    A token that is pointed at, tapped or tabbed to shows what each model expected.
    """
    tokens = [
        _grey(token) if isinstance(token, str) else _token(token, place, names)
        for place, token in enumerate(passage.tokens)
    ]
    return join(
        [
            note(
                "A passage of this cache's validation split. The stronger a token is tinted, the farther the student's "
                "expectation was from the teacher's there: their KL over the teacher's stored tokens and all others as "
                "one, which is at most their whole KL. Point at a token, tap it or tab to it to see what each "
                "model expected."
                + (
                    " Grey tokens are not for the student to learn."
                    if any(isinstance(token, str) for token in passage.tokens)
                    else ""
                )
            ),
            element("a", "Skip the passage", href="#after-passage", class_="skip"),
            element(
                "div",
                _switch(names),
                _legend(),
                element(
                    "div",
                    element("p", _grey(passage.first), *tokens, class_="tokens"),
                    element("p", "What each model expected appears here.", class_="hint"),
                    class_="stage",
                ),
                class_="passage",
            ),
            element("span", id="after-passage", tabindex=-1),
        ]
    )


def _switch(names: Sequence[str]) -> Markup | None:
    """Return the choice of the student whose KL tints the tokens, one of the first six."""
    if len(names) < 2:
        return None
    choices = [
        element(
            "label",
            element("input", type="radio", name="heat", value=place, checked=place == 0),
            " ",
            name,
        )
        for place, name in enumerate(names[:_MOST_TINTED])
    ]
    return element("fieldset", element("legend", "Tinted by the KL of"), *choices)


def _legend() -> Markup:
    """Return the tints with their KLs."""
    edges = [f"below {_HEAT_FROM_NATS[0]:g}", *[f"from {nats:g}" for nats in _HEAT_FROM_NATS]]
    swatches = [element("span", text, class_=f"swatch heat{level}") for level, text in enumerate(edges)]
    return element("p", "KL in nats: ", *swatches, class_="legend")


def _grey(text: str) -> Markup:
    return element("span", shown(text), class_="grey")


def _token(token: PassageToken, place: int, names: Sequence[str]) -> Markup:
    card_id = f"expected-{place}"
    classes = " ".join(["token", *[f"m{student}-{heat(kl)}" for student, kl in enumerate(token.kl_nats)]])
    return element(
        "span", shown(token.text), _card(token, names, card_id),
        class_=classes, tabindex=0, role="button", aria_describedby=card_id,
    )  # fmt: skip


def _card(token: PassageToken, names: Sequence[str], card_id: str) -> Markup:
    columns = [("teacher", token.teacher, None)] + [
        (name, opinion, kl) for name, opinion, kl in zip(names, token.students, token.kl_nats, strict=True)
    ]
    return element(
        "span",
        element("span", "Next came ", element("b", quoted(token.text)), class_="came"),
        *[_column(name, opinion, kl, token.text) for name, opinion, kl in columns],
        class_="card",
        role="tooltip",
        id=card_id,
    )


def _column(name: str, opinion: Opinion, kl: float | None, real: str) -> Markup:
    entries = [
        element(
            "span",
            element("span", quoted(text), class_="guess"),
            " ",
            element("span", percent(probability), class_="chance"),
            class_="entry right" if text == real else "entry",
        )
        for text, probability in opinion.alternatives
    ]
    gave = "its chance is not known" if opinion.probability is None else f"gave it {percent(opinion.probability)}"
    foot = gave + ("" if kl is None else f", KL {kl:.2f}")
    return element("span", element("b", name), *entries, element("span", foot, class_="foot"), class_="opinion")


def heat(kl_nats: float) -> int:
    """Return the tint of a KL, 0 for none."""
    return sum(kl_nats >= nats for nats in _HEAT_FROM_NATS)


def shown(text: str) -> str:
    """Return a token for the passage, with a sign before each line break."""
    return text.replace("\n", "⏎\n") or "∅"


def quoted(text: str) -> str:
    """Return a token for a card, with signs instead of spaces, tabs and line breaks."""
    return text.replace("\n", "⏎").replace(" ", "␣").replace("\t", "⇥") or "∅"
