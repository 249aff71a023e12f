"""teachonce-precompute: run a teacher once over a text and write its outputs to a cache.

teachonce-cut, beside it: cut a smaller model out of a teacher, for a student to begin from.
"""

from __future__ import annotations

import tyro

from pipeline.config import PrecomputeConfig
from pipeline.cutting.config import CutConfig
from storage.command import run_command
from storage.progress import tell


def main() -> None:
    """Run the command teachonce-precompute."""
    run_command(_main)


def _main() -> int:
    config = tyro.cli(PrecomputeConfig, prog="teachonce-precompute", description=PrecomputeConfig.__doc__)
    # Import the heavy modules after the flags are parsed, so that --help and a wrong flag answer at once.
    from pipeline.run import announce, plan_only, precompute, tokenize_only

    if config.only == "tokenize":
        tell(tokenize_only(config))
    elif config.plan == "exact":
        from pipeline.estimate import render_plan

        print(plan_only(config, render_plan))
    elif config.plan == "sample":
        from pipeline.sampled_plan import plan_from_sample

        print(plan_from_sample(config))
    else:
        announce(config, precompute(config))
    return 0


def cut() -> None:
    """Run the command teachonce-cut."""
    run_command(_cut)


def _cut() -> int:
    config = tyro.cli(CutConfig, prog="teachonce-cut", description=CutConfig.__doc__)
    from pipeline.cutting.cut import cut as run
    from pipeline.cutting.record import render

    print(render(run(config)))
    print(
        "nothing was written"
        if config.plan
        else f"{config.out}: complete; begin from it with: teachonce-student train CACHE --preset {config.out}"
    )
    return 0
