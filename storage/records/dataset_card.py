"""The README.md of a cache: a dataset card that the library `datasets` can parse and people can read."""

from __future__ import annotations

import json

from storage.records.identity import NOT_STATED, SPLITS, CacheIdentity, ShardRecord, describe_teacher
from storage.rows.kinds import KINDS
from storage.rows.soft_targets import MAY_BE_UNKNOWN


def dataset_card(identity: CacheIdentity, shards: tuple[ShardRecord, ...]) -> str:
    """Return Markdown with YAML front matter, written as JSON (valid YAML). It depends on the arguments alone."""
    counted = {(kind, split): _count(shards, kind, split) for kind in KINDS for split in SPLITS}
    kinds = [kind for kind in KINDS if any(counted[kind, split] for split in SPLITS)]
    header: dict[str, object] = {
        "tags": ["teachonce", "knowledge-distillation"],
        "configs": [
            {
                "config_name": kind,
                "data_files": [
                    {"split": split, "path": _patterns(kind, split, found[0])}
                    for split in SPLITS
                    if (found := counted[kind, split])
                ],
            }
            for kind in kinds
        ],
    }
    licence = identity.data.get("licence")
    if licence:
        header["license"] = licence
    row_is = {kind: KINDS[kind].describe_row(identity.config.get(kind, {})) for kind in kinds}
    table = "\n".join(
        f"| {kind} | {split} | {num_rows:,} | {num_bytes:,} | {row_is[kind]} |"
        for (kind, split), (_, num_rows, num_bytes) in ((k, v) for k, v in counted.items() if v)
    )
    teacher, data = identity.teacher, identity.data
    sources = data.get("sources", [data])
    data_lines = "\n".join(
        f"- Data: `{source['source']}`, licence {source.get('licence') or 'not stated by the source'}; "
        "the rows contain its text"
        for source in sources
    )
    row_ids = "\n`row_id` and `prompt_id` count each of the sources above on its own.\n" if len(sources) > 1 else ""
    return f"""---
{json.dumps(header, indent=1)}
---

# What {teacher["id"]} knows about {data["source"]}

A teachonce cache: a teacher language model ran once over this text, and these shards are what it said.
Students are distilled from them without the teacher.

{_teacher_lines(identity)}
- Vocabulary: {identity.vocab_size:,} entries; the tokenizer is in `tokenizer/`
{data_lines}
- Written by: {", ".join(f"{name} {version}" for name, version in identity.software.items())}

| kind | split | rows | bytes | a row is |
|---|---|---|---|---|
{table}
{row_ids}
Load rows:

```python
import datasets

rows = datasets.load_dataset("PATH_OF_THIS_DIRECTORY", "{next(iter(kinds or KINDS))}", split="train")
```

Train a student:

```
teachonce-cache verify PATH_OF_THIS_DIRECTORY
teachonce-student train PATH_OF_THIS_DIRECTORY --out STUDENT --preset small
```

Configuration:

```json
{json.dumps(identity.config, indent=1, sort_keys=True)}
```
"""


def _teacher_lines(identity: CacheIdentity) -> str:
    teacher = identity.teacher
    if teacher["architecture"] == NOT_STATED:
        unknown = " and ".join(MAY_BE_UNKNOWN[name] for name in identity.unknown_columns)
        lines = f"- Teacher: `{teacher['id']}`, {describe_teacher(teacher)}"
        return f"{lines}\n- Not known: {unknown}" if unknown else lines
    return (
        f"- Teacher: `{teacher['id']}` ({teacher['architecture']}, {teacher['num_parameters']:,} parameters,\n"
        f"  run in {teacher['dtype']}), sha256 of weights `{teacher['weights_sha256']}`"
    )


def _patterns(kind: str, split: str, num_shards: int) -> str | list[str]:
    """Return a pattern for the names of the shards of one kind and split, and for no copy such as `… (1).arrow`.

    Return one pattern for each length of an index: names of 100,000 shards and more have several.
    """
    lengths = range(5, max(5, len(str(num_shards - 1))) + 1)
    patterns = [f"{kind}/{split}-{'?' * length}-of-{num_shards:05d}.arrow" for length in lengths]
    return patterns if len(patterns) > 1 else patterns[0]


def _count(shards: tuple[ShardRecord, ...], kind: str, split: str) -> tuple[int, int, int] | None:
    """Return the numbers of shards, rows and bytes of one kind and split; None when it has no shards."""
    chosen = [shard for shard in shards if shard.path.startswith(f"{kind}/{split}-")]
    if not chosen:
        return None
    return len(chosen), sum(shard.num_rows for shard in chosen), sum(shard.shard_bytes for shard in chosen)
