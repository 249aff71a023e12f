"""teachonce-precompute: run the teacher once and write what it knows to a cache."""

from __future__ import annotations

import tyro

from pipeline.config import PrecomputeConfig
from storage.command import run_command


def main() -> None:
    """Entry point."""
    run_command(_main)


def _main() -> int:
    config = tyro.cli(PrecomputeConfig, prog="teachonce-precompute", description=__doc__)
    # Heavy imports wait until the flags are known to be right, so that --help is instant.
    from pipeline.run import announce, plan_only, precompute

    if config.plan:
        from pipeline.estimate import render_plan

        print(plan_only(config, render_plan))
    else:
        announce(config, precompute(config))
    return 0
