"""Show the results of the study as a figure and as tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from scripts.support.report import markdown_table

_HEADS = (
    "scheme", "bytes/token", "KL nats/token", "spread", "above full", "spread", "gap closed", "perplexity",
    "calibration error", "KL, averaged weights",
)  # fmt: skip
_FAMILIES = {
    "topk_renorm": "top-k, renormalised",
    "topk_bucket": "top-k, tail in one bucket",
    "random_sampling": "random sampling, draws",
    "fitted_curve": "top-k, fitted curve",
    "tail_top_0": "sampled tail, 1/τ",
    "tail_top_16": "sampled tail and top 16, 1/τ",
}


def read_results(out: Path) -> dict[str, Any]:
    """Return the facts and runs of a study: text, machine, teacher, bytes_per_token, variations.

    variations: {name: settings and seeds}.
    """
    results: dict[str, Any] = json.loads((out / "facts.json").read_text()) | {"variations": {}}
    runs = sorted((json.loads(path.read_text()) for path in (out / "runs").glob("*.json")), key=_place)
    for run in runs:
        found = results["variations"].setdefault(run["variation"], {"settings": run["settings"], "seeds": {}})
        found["seeds"][run["seed"]] = run["schemes"]
    return results


def _place(run: dict[str, Any]) -> tuple[bool, str, int]:
    return run["variation"] != "main", run["variation"], run["seed"]


def family_of(scheme: str) -> tuple[str, int]:
    """Return family and size of a scheme: tail_32_top_16 gives (tail_top_16, 32), topk_bucket_12 (topk_bucket, 12)."""
    parts = scheme.split("_")
    if parts[0] == "tail":
        return f"tail_top_{parts[3]}", int(parts[1])
    return "_".join(parts[:-1]), int(parts[-1])


def draw(results: dict[str, Any], figure: Path) -> None:
    """Plot held-out KL against stored bytes for the main comparison, with the standard deviation over seeds."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    seeds = list(results["variations"]["main"]["seeds"].values())
    ce, full = (np.array([seed[name]["kl_nats"] for seed in seeds]) for name in ("ce", "full"))
    fig, axes = pyplot.subplots(figsize=(8.5, 5.2))
    families: dict[str, list[tuple[float, float, float, int]]] = {}
    for scheme, num_bytes in results["bytes_per_token"].items():
        family, size = family_of(scheme)
        # A scheme and full distillation share initial weights and batches, so their difference varies less than either.
        above = np.array([seed[scheme]["kl_nats"] for seed in seeds]) - full
        families.setdefault(family, []).append((num_bytes, float(above.mean()), float(above.std()), size))
    for family, points in families.items():
        points.sort()
        num_bytes, mean, spread, sizes = zip(*points, strict=True)
        line = axes.errorbar(num_bytes, mean, yerr=spread, marker="o", capsize=2, label=_FAMILIES[family])
        for x, y, size in zip(num_bytes, mean, sizes, strict=True):
            axes.annotate(
                str(size), (x, y), textcoords="offset points", xytext=(5, 4), fontsize=7, color=line[0].get_color()
            )
    axes.axhline(float((ce - full).mean()), color="black", linestyle="--", linewidth=1, label="labels only")
    axes.axhline(0.0, color="black", linestyle=":", linewidth=1, label="full distillation, all entries")
    axes.set_xscale("log")
    axes.set_xticks([10, 20, 32, 50, 100, 200, 300], labels=["10", "20", "32", "50", "100", "200", "300"])
    axes.set_xlabel("stored bytes per token: ids, values, sizes")
    axes.set_ylabel("held-out KL to the teacher above full distillation, nats per token")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.2)
    fig.tight_layout()
    figure.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(figure)


def tables(results: dict[str, Any]) -> str:
    """Return a Markdown table for every variation."""
    return "\n\n".join(
        f"### {name}: {_settings(found['settings'])}\n\n{_table(results, list(found['seeds'].values()))}"
        for name, found in results["variations"].items()
    )


def noise_table(found: dict[str, dict[str, float]]) -> str:
    """Return a Markdown table of each scheme's noise."""
    return markdown_table(
        ("draw", "noise in the head's gradient", "in all others"),
        ((name, f"{values['head']:.4f}", f"{values['body']:.4f}") for name, values in found.items()),
    )


def _settings(settings: dict[str, Any]) -> str:
    return (
        f"{settings['batch_blocks']} blocks a step, {settings['steps']} steps, "
        f"rate {settings['learning_rate']:g}, β2 {settings['beta2']:g}"
    )


def _table(results: dict[str, Any], seeds: list[dict[str, Any]]) -> str:
    full, ce = (np.array([seed[name]["kl_nats"] for seed in seeds]) for name in ("full", "ce"))
    rows = []
    for scheme in seeds[0]:
        columns = {k: np.array([seed[scheme][k] for seed in seeds]) for k in seeds[0][scheme]}
        kl, num_bytes = columns["kl_nats"], results["bytes_per_token"].get(scheme)
        gap = (ce - kl).mean() / (ce - full).mean()
        rows.append(
            (
                scheme,
                "" if num_bytes is None else f"{num_bytes:.1f}",
                *(f"{value:.4f}" for value in (kl.mean(), kl.std())),
                f"{(kl - full).mean():+.4f}",
                f"{(kl - full).std():.4f}",
                f"{gap:.1%}",
                f"{columns['perplexity'].mean():.2f}",
                *(f"{columns[name].mean():.4f}" for name in ("calibration_error", "averaged_kl_nats")),
            )
        )
    return markdown_table(_HEADS, rows)
