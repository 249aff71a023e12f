"""Write the HTML page about a cache: its contents, charts and settings."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from storage.disk.hashing import sha256_file
from storage.pages.markup import Markup, element, join
from storage.pages.numbers import ABSENT, count, decimal, significant, size, whole
from storage.pages.page import Section, note, page, publish_page, require_file_name
from storage.pages.svg import require_matplotlib
from storage.pages.tables import Cell, facts, table, tiles
from storage.reading.cache import Cache, open_cache
from storage.reading.inspection import summarize
from storage.records.identity import NOT_STATED
from storage.records.manifest import MANIFEST_NAME
from storage.records.settings import flatten
from storage.report.cache_charts import beams_charts, samples_charts, soft_targets_charts
from storage.report.cache_rows import look_at_beams, look_at_samples, look_at_soft_targets
from storage.rows.kinds import KINDS

# The section about each kind: its key, its title, a function that reads the cache, and one that draws what was read.
_KIND_SECTIONS: tuple[tuple[str, str, Callable[[Cache], Any], Callable[[Any], Markup]], ...] = (
    ("soft-targets", "Soft targets", look_at_soft_targets, soft_targets_charts),
    ("samples", "Sampled texts", look_at_samples, samples_charts),
    ("beams", "Beam candidates", look_at_beams, beams_charts),
)


def report(cache_path: str, out: Path) -> int:
    """Write a page about a finished cache to `out`; return its size in bytes.

    Raise MissingExtraError without matplotlib, ConfigError or WriteRefusedError when the page cannot be written,
    CacheError when the cache cannot be read.
    """
    require_matplotlib()
    require_file_name(out)
    content = cache_page(open_cache(cache_path), cache_path)
    publish_page(out, content)
    return len(content)


def cache_page(cache: Cache, cache_path: str) -> bytes:
    """Return the page. The same arguments give the same bytes. cache_path: the path that the user gave."""
    summary = summarize(cache)
    sections = [
        Section(key="contents", title="What is in it", content=_contents(summary)),
        *(
            Section(key=key, title=title, content=charts(seen))
            for key, title, look_at, charts in _KIND_SECTIONS
            if (seen := look_at(cache)) is not None
        ),
        Section(key="settings", title="Settings and provenance", content=_settings(cache, summary)),
        Section(key="reproduce", title="Check and use it", content=_use(cache, cache_path)),
    ]
    title = f"What {summary['teacher']['id']} wrote down about {summary['data']['source']}"
    return page(title=title, lead=_lead(summary), sections=sections)


def _lead(summary: dict[str, Any]) -> Markup:
    teacher, kinds = summary["teacher"], summary["kinds"]
    num_bytes = sum(_total(splits, "shard_bytes") for splits in kinds.values())
    parts = [
        KINDS[kind].holds.format(count(_total(splits, KINDS[kind].counted))) for kind, splits in kinds.items() if splits
    ]
    size_of = f" with {count(teacher['num_parameters'])} parameters" if teacher["architecture"] != NOT_STATED else ""
    sentence = f"A teacher{size_of} ran once over this text. Its cache holds "
    sentence += (
        f"{', '.join(parts) or 'no rows'} in {size(num_bytes)}. Students are trained from it without the teacher."
    )
    return element("div", element("p", sentence), _tiles(summary, num_bytes), class_="summary")


def _tiles(summary: dict[str, Any], num_bytes: float) -> Markup:
    soft = summary["kinds"]["soft_targets"]
    bytes_per_token = _total(soft, "shard_bytes") / _total(soft, "num_tokens") if soft else None
    perplexity, entropy = summary["teacher_perplexity"], summary["teacher_entropy_nats"]
    split = "validation" if perplexity["validation"] is not None else "train"
    figures = [
        ("All shards", size(num_bytes)),
        ("Soft targets, bytes per token", decimal(bytes_per_token, 1)),
        (f"Teacher's perplexity, {split}", decimal(perplexity[split])),
        (f"Mean entropy, {split}", ABSENT if entropy[split] is None else f"{entropy[split]:.2f} nats"),
    ]
    return tiles(figures)


def _total(splits: dict[str, dict[str, float]], name: str) -> float:
    return sum(totals[name] for totals in splits.values())


def _contents(summary: dict[str, Any]) -> Markup:
    rows: list[list[Cell]] = []
    for kind, splits in summary["kinds"].items():
        for split, totals in splits.items():
            perplexity = summary["teacher_perplexity"][split] if kind == "soft_targets" else None
            rows.append(
                [
                    f"{kind} {split}",
                    *[whole(totals[name]) for name in ("num_rows", "num_tokens", "num_targets", "shard_bytes")],
                    decimal(totals["shard_bytes"] / max(totals["num_tokens"], 1), 2),
                    decimal(perplexity),
                ]
            )
    columns = ("Rows of", "rows", "tokens", "targets", "bytes", "bytes/token", "teacher's perplexity")
    explanation = (
        "Exact, from the manifest. A target is a position with a next token in its document (that is wanted, in a cache"
        " with the column is_wanted), a completion token, or a candidate. Bytes are those of the compressed shards."
    )
    return join([table(columns, rows, label="Rows, tokens and bytes by kind and split"), note(explanation)])


def _settings(cache: Cache, summary: dict[str, Any]) -> Markup:
    teacher, data, identity = summary["teacher"], summary["data"], cache.identity
    is_described = teacher["architecture"] != NOT_STATED
    provenance: list[tuple[str, Cell]] = [
        ("Teacher", teacher["id"]),
        ("Revision", _plain(teacher.get("revision"))),
        ("Architecture", teacher["architecture"]),
        ("Parameters", teacher["num_parameters"] if is_described else _plain(None)),
        ("Run in", teacher["dtype"]),
        ("Context", _plain(teacher.get("context_length"))),
        ("sha256 of its weights", code(teacher.get("weights_sha256"))),
        ("Text", data["source"]),
        *[(f"Licence of {source['source']}", _licence(source)) for source in data.get("sources", [data])],
        ("Fingerprint of the text", code(data.get("fingerprint"))),
        ("Vocabulary", identity.vocab_size),
        ("Targets in a block", identity.block_size),
        ("Written by", ", ".join(f"{name} {version}" for name, version in sorted(identity.software.items()))),
    ]
    settings = [(name, _plain(value)) for name, value in sorted(flatten(identity.config).items())]
    return join([facts(provenance), element("details", element("summary", "Settings"), facts(settings))])


def _use(cache: Cache, cache_path: str) -> Markup:
    manifest = cache.path / MANIFEST_NAME
    name = shlex.quote(cache_path)
    commands = "\n".join(
        (
            f"teachonce-cache verify {name}",
            f"teachonce-cache head {name}{_kind_shown(cache)}",
            f"teachonce-student train {name} --out student",
        )
    )
    return join([facts([("sha256 of manifest.json", code(sha256_file(manifest)))]), commands_block(commands)])


def _kind_shown(cache: Cache) -> str:
    """Return the --kind flag that `head` needs for a cache without train rows of its default kind, else nothing."""
    held = cache.held_kinds("train")
    return "" if not held or held[0] == next(iter(KINDS)) else f" --kind {held[0]}"


def commands_block(commands: str) -> Markup:
    """Return a block of command lines for the user to type."""
    return element("pre", element("code", commands))


def _licence(source: dict[str, Any]) -> str:
    return _plain(source.get("licence")) if source.get("licence") else "not stated by the source"


def code(value: object) -> Markup:
    """Return a value from a cache's JSON, which may be a stranger's, as a `code` element."""
    return element("code", _plain(value))


def _plain(value: object) -> str:
    """Return a value from a cache's JSON in one line."""
    if value is None:
        return "none"
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return json.dumps(value, ensure_ascii=False)
    return significant(value)
