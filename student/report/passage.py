"""A held-out passage token by token, with the next tokens that teacher and students expected.

Shape legend: P targets of the passage, V vocabulary, A alternatives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from storage.pages.markup import Markup, element, join
from storage.pages.numbers import percent
from storage.pages.page import note
from storage.reading.cache import Cache
from storage.rows import soft_targets
from student.evaluation.positions import measure_positions
from student.losses.batches import block_batch
from student.losses.targets import SparseTargets
from student.model.architecture import hidden_states, num_vocabulary_rows, output_head

_MOST_TARGETS = 160
_ALTERNATIVES = 5
# page.css has tints for this number of students.
_MOST_TINTED = 6
# A tint begins at each of these KLs, in nats.
_HEAT_FROM_NATS = (0.1, 0.4, 1.0, 2.0)

Alternative = tuple[str, float]


@dataclass(frozen=True, kw_only=True)
class Opinion:
    """One model's prediction of a token: the token's probability, and the most probable tokens with theirs."""

    probability: float
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
    """The first token, which no model predicted, and the tokens after it."""

    first: str
    tokens: list[PassageToken]


@torch.inference_mode()
def look_at_passage(models: Sequence[Any], cache: Cache, decode: Callable[[Any], str]) -> Passage | None:
    """Predict the beginning of the longest piece of a document in the first record batch of the validation split.

    Return None without blocks, or when no piece has two tokens.
    """
    if not cache.num_rows("soft_targets", "validation"):
        return None
    stored = next(cache.record_batches("soft_targets", "validation"))
    pieces = [
        (int(length), r, int(lengths[:s].sum()))
        for r, lengths in enumerate(soft_targets.decode(stored).segment_lengths)
        for s, length in enumerate(lengths)
    ]
    length, row, start = max(pieces, key=lambda piece: (piece[0], -piece[1]))
    if length < 2:
        return None
    chosen = stored.slice(row, 1)
    # Without the sampled tail, whose noise dominates the KL of a single position.
    batch = block_batch(chosen, tail_weight=None, temperature=1.0, device=torch.device("cpu"))
    num_before = int(batch.is_valid[0, :start].sum())
    places = slice(num_before, num_before + min(length - 1, _MOST_TARGETS))
    targets = batch.targets.slice(places.start, places.stop)
    label_logprob = batch.label_logprob[places]
    teachers = _teachers_opinions(targets, label_logprob.exp().tolist(), decode)
    students = [_students_opinions(model, chosen, places, targets, decode) for model in models]
    ids = soft_targets.decode(chosen).input_ids[0]
    return Passage(
        first=decode(ids[start : start + 1]),
        tokens=[
            PassageToken(
                text=decode(ids[start + 1 + p : start + 2 + p]),
                teacher=teachers[p],
                students=[opinions[p] for opinions, _ in students],
                kl_nats=[kl[p] for _, kl in students],
            )
            for p in range(len(targets))
        ],
    )


def _teachers_opinions(
    targets: SparseTargets, probabilities: list[float], decode: Callable[[Any], str]
) -> list[Opinion]:
    """Return the head's most probable entries: the cache has no probabilities of tokens outside the head."""
    opinions = []
    for p, probability in enumerate(probabilities):
        ids = targets.head_ids[p][targets.is_head[p]].numpy()
        logprobs = targets.head_logprobs[p][targets.is_head[p]].numpy()
        best = np.argsort(-logprobs, kind="stable")[:_ALTERNATIVES]
        alternatives = [(decode(ids[b : b + 1]), float(np.exp(logprobs[b]))) for b in best]
        opinions.append(Opinion(probability=probability, alternatives=alternatives))
    return opinions


def _students_opinions(
    model: Any, row: Any, places: slice, targets: SparseTargets, decode: Callable[[Any], str]
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
                (decode(np.array([token_id])), probability)
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
    tokens = [_token(token, place, names) for place, token in enumerate(passage.tokens)]
    return join(
        [
            note(
                "A passage of this cache's validation split. The stronger a token is tinted, the farther the student's "
                "expectation was from the teacher's there: their KL over the teacher's stored tokens and all others as "
                "one, which is at most their whole KL. Point at a token, tap it or tab to it to see what each "
                "model expected."
            ),
            element("a", "Skip the passage", href="#after-passage", class_="skip"),
            element(
                "div",
                _switch(names),
                _legend(),
                element(
                    "div",
                    element("p", element("span", shown(passage.first), class_="first"), *tokens, class_="tokens"),
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
    foot = f"gave it {percent(opinion.probability)}" + ("" if kl is None else f", KL {kl:.2f}")
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
