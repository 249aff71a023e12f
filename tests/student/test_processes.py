"""Whether a process is one of several, and which GPU is its own, by its environment."""

from __future__ import annotations

from typing import NoReturn

import pytest
import torch

from student.errors import LauncherError
from student.processes import gpu_index, joined_processes

MEETING = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """One that no launcher has touched."""
    for name in (
        *MEETING, "LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID",
        "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "TORCHELASTIC_RUN_ID",
    ):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def set_all(environment: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    for name, value in values.items():
        environment.setenv(name, value)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "8"},  # in a batch script, outside of srun
        {"SLURM_STEP_NUM_TASKS": "1", "OMPI_COMM_WORLD_SIZE": "1", "PMI_SIZE": "1"},
        {"WORLD_SIZE": "1", "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "3"},  # a student in each, on purpose
        MEETING | {"WORLD_SIZE": "1"},
        dict.fromkeys(MEETING, ""),
    ],
)
def test_a_process_that_is_alone(environment: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    set_all(environment, values)
    with joined_processes() as processes:
        assert (processes.rank, processes.world_size) == (0, 1)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"RANK": "1"}, "RANK set in the environment, WORLD_SIZE, MASTER_ADDR, MASTER_PORT not set"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "RANK, WORLD_SIZE set in the environment, MASTER_ADDR, MASTER_PORT not"),
        ({"MASTER_ADDR": "host"}, "MASTER_ADDR set in the environment"),
        ({"WORLD_SIZE": "1", "RANK": "1"}, "not set"),
        (MEETING | {"RANK": "2"}, "RANK is '2', WORLD_SIZE is '2'"),
        (MEETING | {"RANK": "first"}, "expected numbers, and RANK below WORLD_SIZE"),
        (MEETING | {"MASTER_PORT": "http"}, "MASTER_PORT is 'http'"),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"}, "SLURM_STEP_NUM_TASKS is 4: several processes"),
        ({"SLURM_PROCID": "1"}, "SLURM_PROCID is 1: several processes"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE is 2: several processes"),
        ({"PMI_SIZE": "2"}, "PMI_SIZE is 2: several processes"),
    ],
)
def test_one_of_several_that_cannot_meet_the_others_is_refused(
    environment: pytest.MonkeyPatch, values: dict[str, str], told: str
) -> None:
    set_all(environment, values)
    with pytest.raises(LauncherError) as caught, joined_processes():
        pass
    assert told in str(caught.value)
    assert "set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in each" in str(caught.value)


def test_a_meeting_that_does_not_come_about_is_one_line(environment: pytest.MonkeyPatch) -> None:
    set_all(environment, MEETING)

    def rendezvous(url: str) -> NoReturn:
        raise torch.distributed.DistNetworkError("address already in use")

    environment.setattr("student.processes.rendezvous", rendezvous)
    told = r"127\.0\.0\.1:1: no meeting with the other processes \(address already in use\)"
    with pytest.raises(LauncherError, match=told), joined_processes():
        pass


@pytest.mark.parametrize(
    ("values", "num_gpus", "index"),
    [
        ({}, 8, 0),
        ({"LOCAL_RANK": "3", "RANK": "11"}, 8, 3),
        ({"SLURM_LOCALID": "3", "RANK": "11"}, 8, 3),
        ({"SLURM_LOCALID": "3", "RANK": "11"}, 1, 0),
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "2", "RANK": "6"}, 4, 2),
        ({"RANK": "11"}, 8, 3),
        ({"RANK": "11"}, 0, 0),
    ],
)
def test_each_process_of_a_host_has_a_gpu_of_its_own(
    environment: pytest.MonkeyPatch, values: dict[str, str], num_gpus: int, index: int
) -> None:
    set_all(environment, values)
    environment.setattr(torch.cuda, "device_count", lambda: num_gpus)
    assert gpu_index() == index
