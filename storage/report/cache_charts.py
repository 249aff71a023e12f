"""Draw the charts of the report about a cache."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.pages.charts import Axes, Chart, Line, bars, histogram, lines
from storage.pages.markup import Markup, join
from storage.pages.numbers import percent, whole
from storage.pages.page import grid, note
from storage.report.cache_rows import BeamsSeen, Coverage, Floats, SamplesSeen, SoftTargetsSeen

_ENTROPY_BINS, _MASS_BINS, _LENGTH_BINS = 40, 25, 24
_ENDS = {"stop": "end of text", "length": "token limit"}


def soft_targets_charts(seen: SoftTargetsSeen) -> Markup:
    """Return charts of the entropy, entries, mass and bytes of soft targets."""
    return join(
        [
            _coverage_note(seen.coverage, "blocks"),
            *([note("The cache does not know the teacher's entropy.")] if seen.entropy is None else []),
            grid(
                *([] if seen.entropy is None else [_entropy_chart(seen.entropy)]),
                _entries_chart("head-size", "Entries of the head", "exact probabilities", seen.head_size),
                _entries_chart("tail-size", "Draws from the tail", "sampled tokens", seen.tail_size),
                _head_mass_chart(seen),
                _bytes_chart("soft-target-bytes", "Bytes of soft targets by column", seen.coverage),
            ),
        ]
    )


def _entropy_chart(entropy: Floats) -> Markup:
    edges = np.linspace(0.0, max(float(entropy.max()), 1e-3), _ENTROPY_BINS + 1)
    shares = _shares(entropy, edges)
    return histogram(
        Chart(
            key="entropy",
            title="How unsure the teacher is",
            caption=f"Entropy of the teacher's next-token distribution: left it is sure, right it is guessing. Half of "
            f"all positions lie below {_quantile(entropy, 0.5):.2f} nats.",
            x_label="entropy, nats",
            y_label="share of positions",
            columns=("from, nats", "to, nats", "share of positions"),
            rows=_bin_rows(edges, shares),
        ),
        edges.tolist(),
        shares,
    )


def _entries_chart(key: str, title: str, what: str, sizes: Floats) -> Markup:
    top = int(sizes.max())
    width = max(1, -(-(top + 1) // _LENGTH_BINS))
    edges = np.arange(0, top + width + 1, width) - 0.5
    shares = _shares(sizes, edges)
    return histogram(
        Chart(
            key=key,
            title=title,
            caption=f"How many {what} a position has: {sizes.mean():.1f} on average, at most {top}.",
            x_label="entries of a position",
            y_label="share of positions",
            columns=("from", "to", "share of positions"),
            rows=[[low + 0.5, high - 0.5, share] for low, high, share in _bin_rows(edges, shares)],
        ),
        edges.tolist(),
        shares,
    )


def _head_mass_chart(seen: SoftTargetsSeen) -> Markup:
    edges = np.linspace(0.0, 1.0, _MASS_BINS + 1)
    shares = _shares(1 - np.clip(seen.tail_mass, 0.0, 1.0), edges)
    return histogram(
        Chart(
            key="head-mass",
            title="What the head covers",
            caption="Probability that the exact entries of a position have together; the rest is its tail, "
            f"{percent(float(seen.tail_mass.mean()))} on average.",
            x_label="probability inside the head",
            y_label="share of positions",
            columns=("from", "to", "share of positions"),
            rows=_bin_rows(edges, shares),
        ),
        edges.tolist(),
        shares,
        Axes(x_range=(0.0, 1.0)),
    )


def _bytes_chart(key: str, title: str, coverage: Coverage) -> Markup:
    sizes = dict(sorted(coverage.column_bytes.items(), key=lambda item: -item[1])) | {"layout": coverage.other_bytes}
    total = sum(sizes.values())
    return bars(
        Chart(
            key=key,
            title=title,
            caption="Compressed bytes of each column in the files of the shards that were opened; layout is what Arrow "
            "adds around them.",
            x_label="bytes",
            y_label="",
            columns=("column", "bytes", "share"),
            rows=[[name, num_bytes, percent(num_bytes / total)] for name, num_bytes in sizes.items()],
        ),
        list(sizes),
        list(sizes.values()),
        [percent(num_bytes / total) for num_bytes in sizes.values()],
    )


def samples_charts(seen: SamplesSeen) -> Markup:
    """Return charts of the lengths, finish reasons and bytes of sampled texts."""
    return join(
        [
            _coverage_note(seen.coverage, "texts"),
            grid(
                _length_chart(seen.num_tokens),
                _finish_chart(seen.finish_reasons),
                _bytes_chart("sample-bytes", "Bytes of sampled texts by column", seen.coverage),
            ),
        ]
    )


def _length_chart(num_tokens: Floats) -> Markup:
    top = int(num_tokens.max())
    width = max(1, -(-top // _LENGTH_BINS))
    edges = np.arange(0, top + width, width) + 0.5
    shares = _shares(num_tokens, edges)
    return histogram(
        Chart(
            key="sample-length",
            title="Length of sampled texts",
            caption=f"Tokens of a text, its end included: {num_tokens.mean():.1f} on average, at most {top}.",
            x_label="tokens",
            y_label="share of texts",
            columns=("from", "to", "share of texts"),
            rows=[[low + 0.5, high - 0.5, share] for low, high, share in _bin_rows(edges, shares)],
        ),
        edges.tolist(),
        shares,
    )


def _finish_chart(finish_reasons: list[str]) -> Markup:
    counts = {_ENDS[reason]: num_texts for reason, num_texts in sorted(Counter(finish_reasons).items())}
    shares = [percent(num_texts / len(finish_reasons)) for num_texts in counts.values()]
    return bars(
        Chart(
            key="finish-reason",
            title="Why sampled texts ended",
            caption="How many texts the teacher ended itself, and how many the limit cut off.",
            x_label="texts",
            y_label="",
            columns=("reason", "texts", "share"),
            rows=list(zip(counts, counts.values(), shares, strict=True)),
        ),
        list(counts),
        list(counts.values()),
        shares,
    )


def beams_charts(seen: BeamsSeen) -> Markup:
    """Return charts of the score gaps and bytes of beam candidates."""
    most = max(map(len, seen.scores))
    gaps = {
        rank: [scores[0] - scores[rank - 1] for scores in seen.scores if len(scores) >= rank]
        for rank in range(1, most + 1)
    }
    rows = [
        [rank, len(found), *[_quantile(found, share) for share in (0.25, 0.5, 0.75)]] for rank, found in gaps.items()
    ]
    ranks = [float(rank) for rank in gaps]
    low, median, high = ([float(row[place]) for row in rows] for place in (2, 3, 4))
    gap_chart = lines(
        Chart(
            key="score-gap",
            title="How far candidates lie behind the best",
            caption="Difference of scores to the best candidate of the same prompt, by rank: the line is the median, "
            "the band holds the middle half of the prompts. A flat line means that candidates are hard to tell apart.",
            x_label="rank of the candidate",
            y_label="behind the best, nats",
            columns=("rank", "prompts", "first quartile", "median", "third quartile"),
            rows=rows,
        ),
        [Line(name="median", x=ranks, y=median, low=low, high=high, colour=1)],
        Axes(x_ticks=[(rank, f"{rank:.0f}") for rank in ranks] if most <= 12 else ()),
    )
    second = [scores[0] - scores[1] for scores in seen.scores if len(scores) > 1]
    return join(
        [
            _coverage_note(seen.coverage, "prompts"),
            grid(
                gap_chart,
                _second_gap_chart(np.array(second)) if second else None,
                _bytes_chart("beam-bytes", "Bytes of beam candidates by column", seen.coverage),
            ),
        ]
    )


def _second_gap_chart(gaps: Floats) -> Markup:
    edges = np.linspace(0.0, max(float(gaps.max()), 1e-6), _MASS_BINS + 1)
    shares = _shares(gaps, edges)
    return histogram(
        Chart(
            key="second-gap",
            title="Best against second best",
            caption=f"How clearly the teacher prefers its first candidate; half of the prompts lie below "
            f"{_quantile(gaps, 0.5):.3f} nats.",
            x_label="difference of scores, nats",
            y_label="share of prompts",
            columns=("from, nats", "to, nats", "share of prompts"),
            rows=_bin_rows(edges, shares),
        ),
        edges.tolist(),
        shares,
    )


def _coverage_note(coverage: Coverage, rows: str) -> Markup:
    if coverage.num_rows == coverage.total_rows:
        return note(f"From all {whole(coverage.total_rows)} {rows}.")
    return note(
        f"From {whole(coverage.num_rows)} of {whole(coverage.total_rows)} {rows}, spread over "
        f"{coverage.num_shards} of {coverage.total_shards} shards."
    )


def _shares(values: Floats, edges: NDArray[Any]) -> list[float]:
    shares: list[float] = (np.histogram(values, edges)[0] / len(values)).tolist()
    return shares


def _bin_rows(edges: NDArray[Any], shares: Sequence[float]) -> list[list[float]]:
    return [
        [low, high, share] for low, high, share in zip(edges[:-1].tolist(), edges[1:].tolist(), shares, strict=True)
    ]


def _quantile(values: Sequence[float] | Floats, share: float) -> float:
    """Return the value below which the fraction `share` of the values lies."""
    return float(np.quantile(values, share))
