"""Try every causal family of transformers as a teacher and as a student, and write the table of docs/models.md.

    python -m scripts.models
    python -m scripts.models --only llama "gemma2, cap 3" --results /tmp/models.jsonl
    python -m scripts.models --page docs/models.md

Each family becomes a tiny random model. The numbers of its cache, its gradient, its evaluation and its texts are
compared with the model itself on each text alone, in float64. A sweep takes minutes; what is in the file of results is
not tried again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from storage.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ModelsConfig:
    """Which families to try, and where to write what was found."""

    only: tuple[str, ...] = ()
    """Families to try; () tries all."""
    results: Path = Path("models.jsonl")
    """File of results, a line a family; families in it are not tried again."""
    page: Path | None = None
    """Write the table of all results to this file."""

    def __post_init__(self) -> None:
        if not self.only:
            return
        from scripts.models.families import families

        unknown = sorted(set(self.only) - set(families()))
        if unknown:
            raise ConfigError(f"--only {unknown[0]!r}: unknown; expected some of {', '.join(families())}")


def main() -> None:
    """Try the families, print a line for each, and write the page."""
    config = tyro.cli(ModelsConfig, prog="python -m scripts.models", description=__doc__)
    from scripts.models.families import families
    from scripts.models.sweep import read_found, sweep
    from scripts.models.table import render

    known = read_found(config.results)
    names = [name for name in config.only or families() if name not in known]
    for found in sweep(names, config.results):
        teacher, student = (f"{verdict.word} {verdict.why}".strip() for verdict in (found.teacher, found.student))
        print(f"{found.family} ({found.seconds:.1f} s)\n  teacher: {teacher}\n  student: {student}", flush=True)
    if config.page:
        config.page.write_text(render(read_found(config.results)))


if __name__ == "__main__":
    main()
