"""Turn the files that gpu.sh wrote into one table: a row a comparison, a column a shape of the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scripts.bench.config import BenchConfig
from scripts.bench.gpu.ceilings import COPY, PRODUCT
from scripts.bench.gpu.floors import WORK
from scripts.bench.report import figure
from scripts.support.report import in_one_line, markdown_table

SHAPES = ("124m", "xl")
_NOT_KNOWN = "not known"
_OUT_OF_TIME = {"124", "137"}

Document = dict[str, Any]
"""What python -m scripts.bench --json prints."""


def render(folder: Path) -> str:
    """Return the machine, the table, and the parts that failed. A part that left no document has no cells."""
    found = {path.stem: document for path in sorted(folder.glob("*.json")) if (document := _read(path)) is not None}
    ceilings = _ceilings(found.pop("ceilings", None))
    rows: dict[str, dict[str, str]] = {}
    for name, document in found.items():
        bench, _, shape = name.partition("-")
        for what, cell in _cells(bench, document, ceilings).items():
            rows.setdefault(what, {})[shape] = cell
    table = markdown_table(
        ("what", *SHAPES), ((what, *(cells.get(shape, "") for shape in SHAPES)) for what, cells in rows.items())
    )
    machines = [document["machine"] for document in found.values()]
    facts = [f"Machine: {in_one_line(machines[0])}."] if machines else []
    return "\n\n".join([*facts, _ceilings_line(ceilings), table, _failed(folder / "parts.tsv")])


def _read(path: Path) -> Document | None:
    try:
        document: Document = json.loads(path.read_text())
    except json.JSONDecodeError:  # the part was stopped
        return None
    return document


def _ceilings(document: Document | None) -> dict[str, dict[str, float]]:
    """Return the medians of ours and of the reference, by what was measured."""
    records = [] if document is None else document["benches"]["ceilings"]["comparisons"]
    return {r["what"]: {r["ours"]: r["our_median"], r["reference"]: r["reference_median"]} for r in records}


def _ceilings_line(ceilings: dict[str, dict[str, float]]) -> str:
    parts = [
        f"{what}: {', '.join(f'{name} {value:.4g}' for name, value in rates.items())} {unit}"
        for (what, rates), unit in zip(ceilings.items(), ("FLOP/s", "B/s"), strict=False)
    ]
    return f"Ceilings: {'; '.join(parts) or _NOT_KNOWN}."


def _cells(bench: str, document: Document, ceilings: dict[str, dict[str, float]]) -> dict[str, str]:
    """Return a cell per row: a ratio with both medians, the speed with its share of the ceilings, and the peak."""
    result = document["benches"][bench]
    cells = {
        f"{bench}: {r['what']}, {r['ours']} / {r['reference']}": (
            f"{figure(r['our_median'])} / {figure(r['reference_median'])} {r['unit']} = {r['ratio']:.3f}"
        )
        for r in result["comparisons"]
    }
    cells[f"{bench}: tokens/s; share of the product's ceiling; of the copy's"] = _speed(bench, document, ceilings)
    if bench == "precompute" and document["settings"]["device"] == "cpu":
        cells["precompute: share of time in which a kernel runs on a GPU"] = _NOT_KNOWN
    return cells | {f"{bench}: peak memory": f"{result['peak_bytes'] / 1e9:.2f} GB"}


def _speed(bench: str, document: Document, ceilings: dict[str, dict[str, float]]) -> str:
    work = WORK[bench](BenchConfig(**document["settings"]))
    value = next(
        r["our_median"]
        for r in document["benches"][bench]["comparisons"]
        if r["unit"] == work.unit and work.of in f"{r['what']}, {r['ours']}"
    )
    tokens_per_s = work.tokens_per_s(value)
    shares = [
        f"{tokens_per_s * asked / ceilings[what][name]:.1%}" if what in ceilings else _NOT_KNOWN
        for what, name, asked in (
            (PRODUCT, document["settings"]["dtype"] or "float32", work.flops),
            (COPY, "read and written", work.moved_bytes),
        )
    ]
    return "; ".join([figure(tokens_per_s), *shares])


def _failed(parts: Path) -> str:
    """Return a line about the parts that failed. parts: a line per part with its name, exit code and seconds."""
    lines = [line.split("\t") for line in parts.read_text().splitlines()] if parts.exists() else []
    failed = [
        f"{name} ({'out of time' if code in _OUT_OF_TIME else f'exit code {code}'} after {seconds} s)"
        for name, code, seconds in lines
        if code != "0"
    ]
    return f"Failed: {', '.join(failed)}; see the logs." if failed else f"All {len(lines)} parts passed."
