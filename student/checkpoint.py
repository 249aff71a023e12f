"""Checkpoints of a run: everything that the next step depends on, in one file that appears at once."""

from __future__ import annotations

import pickle
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, cast

import torch

from storage.errors import first_line
from storage.files import publishing
from storage.row_stream import StreamState
from student.errors import CheckpointError, RunMismatchError
from student.meter import Meter

CHECKPOINT_NAME = "checkpoint.pt"


def save_checkpoint(
    out: Path,
    *,
    step: int,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    streams: dict[str, StreamState],
    meter: Meter,
    run: dict[str, Any],
) -> None:
    """Publish the state after `step` steps; `run` is what a resuming run must agree with."""
    state = {
        "step": step,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "streams": {kind: asdict(stream) for kind, stream in streams.items()},
        "meter": meter.state(),
        "random": torch.get_rng_state(),
        "run": run,
    }
    with publishing(out / CHECKPOINT_NAME) as file:
        torch.save(state, cast(IO[bytes], file))


def load_checkpoint(
    out: Path, *, model: torch.nn.Module, optimizer: torch.optim.Optimizer, run: dict[str, Any]
) -> tuple[int, dict[str, StreamState], Meter]:
    """Restore the last checkpoint: steps done, stream states and counts; those of a run's begin without one.

    Raises CheckpointError for a damaged file, RunMismatchError when `run` differs from the run that wrote it.
    """
    path = out / CHECKPOINT_NAME
    if not path.is_file():
        return 0, {}, Meter()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(str(path), first_line(error)) from error
    for field in sorted(run.keys() | state["run"].keys()):
        if run.get(field) != state["run"].get(field):
            raise RunMismatchError(str(out), field, state["run"].get(field), run.get(field))
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"])
    streams = {kind: StreamState(**stream) for kind, stream in state["streams"].items()}
    return state["step"], streams, Meter(**state.get("meter", {}))  # earlier versions kept none


def remove_checkpoint(out: Path) -> None:
    """Delete the checkpoint of a finished run."""
    (out / CHECKPOINT_NAME).unlink(missing_ok=True)
