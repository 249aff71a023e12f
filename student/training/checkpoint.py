"""Checkpoints of a run: everything that the next step depends on.

checkpoint.pt is published atomically. With fsdp, the tensors are in a directory beside it
(torch.distributed.checkpoint), and checkpoint.pt names that directory. A run can resume from either kind of checkpoint
with any number of processes and any parallelism.
"""

from __future__ import annotations

import pickle
import shutil
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, cast

import torch
import transformers
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load as load_sharded
from torch.distributed.checkpoint.state_dict_saver import save as save_sharded

from storage.disk.files import publishing, refusals
from storage.errors import first_line
from storage.reading.row_stream import StreamState
from student.errors import CheckpointError
from student.model.adapters import merge_adapters
from student.run_record import read_run, require_same_facts
from student.training.learner import Learner
from student.training.meter import Meter

CHECKPOINT_NAME = "checkpoint.pt"
SHARDED_PREFIX = "checkpoint-"
_STATE = {"step": int, "streams": dict, "random": torch.Tensor, "run": dict}


def save_checkpoint(
    out: Path, *, step: int, learner: Learner, streams: dict[str, StreamState], meter: Meter, run: dict[str, Any]
) -> None:
    """Publish the state after `step` steps. All processes call this.

    run: the facts that a resuming run must agree with.
    """
    parallel = learner.parallel
    model, optimizer = get_state_dict(parallel.model, learner.optimizer)
    tensors = {"model": _without_frozen(model, parallel.model), "optimizer": optimizer}
    state: dict[str, Any] = {
        "step": step,
        "streams": {kind: asdict(stream) for kind, stream in streams.items()},
        "meter": meter.state(),
        "random": torch.get_rng_state(),
        "run": run,
    }
    if parallel.is_sharded:
        state["sharded"] = f"{SHARDED_PREFIX}{step}"
        with refusals(out / state["sharded"]):
            save_sharded(tensors, checkpoint_id=out / state["sharded"])
    else:
        state |= tensors
    # Together, because a launcher may kill the others as soon as one process ends, and this one is still writing.
    with parallel.processes.together():
        if parallel.processes.is_first:
            with publishing(out / CHECKPOINT_NAME) as file:
                torch.save(state, cast(IO[bytes], file))
            _remove_sharded(out, keep=state.get("sharded"))


def load_checkpoint(out: Path, *, learner: Learner, run: dict[str, Any]) -> tuple[int, dict[str, StreamState], Meter]:
    """Restore the last checkpoint into `learner`. All processes call this.

    Return the number of steps done, the stream states by kind, and the meter. Without a checkpoint, return 0, {} and
    a new meter.

    Raises CheckpointError for a damaged file or another program's, and the errors of require_same_facts when `run`
    differs from the run that wrote it.
    """
    path, processes = out / CHECKPOINT_NAME, learner.parallel.processes
    if not path.is_file():
        return 0, {}, Meter(processes=processes)
    state = _read_state(path)
    require_same_facts(out, state["run"], run)
    if "sharded" in state:
        _load_sharded(out / state["sharded"], learner)
    else:
        model = learner.parallel.model
        if _shapes(state["model"]) != _shapes(_without_frozen(model.state_dict(), model)):
            raise CheckpointError(str(path), "its tensors are not those of the student that --preset describes")
        options = StateDictOptions(full_state_dict=True, strict=False)  # frozen weights are not in there
        _set_state(learner, state["model"], state["optimizer"], options)
    torch.set_rng_state(state["random"])
    streams = {kind: StreamState(**stream) for kind, stream in state["streams"].items()}
    return state["step"], streams, Meter(processes=processes, **state.get("meter", {}))  # older versions saved no meter


def begun_run(out: Path) -> dict[str, Any]:
    """Return the facts of the run that is finished or has a checkpoint in `out`, {} for none; raise CheckpointError."""
    path = out / CHECKPOINT_NAME
    if run := read_run(out):
        return run
    found: dict[str, Any] = _read_state(path, mmap=zipfile.is_zipfile(path))["run"] if path.is_file() else {}
    return found


def _read_state(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    """Return the content of a checkpoint; raise CheckpointError when it is not one of a run.

    mmap: read tensors only when they are used.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # bytes that are no checkpoint can make the reader raise anything
        raise CheckpointError(str(path), _first_sentence(error)) from error
    if not isinstance(state, dict):
        raise CheckpointError(str(path), f"it holds a {type(state).__name__}, not the state of a run")
    kinds = _STATE | ({"sharded": str} if "sharded" in state else {"model": dict, "optimizer": dict})
    lacking = [name for name, kind in kinds.items() if not isinstance(state.get(name), kind)]
    if lacking:
        raise CheckpointError(str(path), f"it has no {', '.join(lacking)}")
    return state


def _shapes(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _without_frozen(tensors: dict[str, Any], model: Any) -> dict[str, Any]:
    """Return a model's tensors without the weights that are not trained: they are those of --preset."""
    parameters = model.named_parameters(remove_duplicate=False)  # a tied head has a name of its own
    frozen = {name for name, parameter in parameters if not parameter.requires_grad}
    return {name: tensor for name, tensor in tensors.items() if name not in frozen}


def whole_model(learner: Learner) -> Any:
    """Return the student as one unsharded model, with its adapters merged. All processes call this at the end.

    With fsdp, only the first process's model has the trained weights.
    """
    model = learner.parallel.model
    if learner.config.lora.rank is not None:
        merge_adapters(model)
    if not learner.parallel.is_sharded:
        return model
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    whole = transformers.AutoModelForCausalLM.from_config(model.config)
    whole.generation_config = model.generation_config
    if learner.parallel.processes.is_first:
        whole.load_state_dict(weights)
    return whole


def remove_checkpoint(out: Path) -> None:
    """Delete the checkpoint of a finished run."""
    (out / CHECKPOINT_NAME).unlink(missing_ok=True)
    _remove_sharded(out, keep=None)


def _first_sentence(error: BaseException) -> str:
    """Return what PyTorch found, without its advice, which includes running code from the file."""
    return first_line(error).partition(". ")[0]


def _load_sharded(directory: Path, learner: Learner) -> None:
    """Load the tensors of an fsdp checkpoint. Each process reads the parts that it needs."""
    model, optimizer = get_state_dict(learner.parallel.model, learner.optimizer)
    tensors = {"model": model, "optimizer": optimizer}
    try:
        load_sharded(tensors, checkpoint_id=directory)
    except (CheckpointException, OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(str(directory), _first_sentence(error)) from error
    _set_state(learner, tensors["model"], tensors["optimizer"], StateDictOptions())


def _set_state(learner: Learner, model: Any, optimizer: Any, options: StateDictOptions) -> None:
    set_state_dict(
        learner.parallel.model,
        learner.optimizer,
        model_state_dict=model,
        optim_state_dict=optimizer,
        options=options,
    )


def _remove_sharded(out: Path, keep: str | None) -> None:
    for directory in out.glob(f"{SHARDED_PREFIX}*"):
        if directory.name != keep and is_sharded(directory):
            shutil.rmtree(directory)


def is_sharded(directory: Path) -> bool:
    """Whether a path is a directory of torch.distributed.checkpoint with nothing else in it, whole or not."""
    return directory.is_dir() and all(path.name.startswith((".metadata", "__")) for path in directory.iterdir())
