"""Connect to Ray, and divide its machines among workers."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.config import PrecomputeConfig
from storage.errors import ConfigError, first_line

# A socket's path has at most 107 bytes, and Ray adds about 70 to its directory.
_LONGEST_TEMPORARY_DIRECTORY = 16
_CONNECT_WITHIN_S = 10.0
# Only answers of a few bytes pass through Ray's object store.
_OBJECT_STORE_BYTES = 100_000_000


@dataclass(frozen=True, kw_only=True)
class Share:
    """The number of workers, and what each one gets of its machine: whole GPUs (1 or 0) and CPUs."""

    num_workers: int
    num_gpus: int
    num_cpus: int


@contextlib.contextmanager
def ray_session(config: PrecomputeConfig) -> Iterator[Any]:
    """Yield the ray module, connected to a cluster, or to a Ray that is started for this run and ends with it.

    What Ray prints on standard output is discarded. Raises ConfigError when Ray is not installed or cannot be reached.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # send no usage statistics
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            f"--engine ray: Ray cannot be imported ({first_line(error)}); pip install -c constraints.txt -e .[ray]"
        ) from error
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        place = {"address": config.address} if config.address else _own_ray(config, stack)
        try:
            _require_listener(config.address)
            ray.init(**place, log_to_driver=False, logging_level=logging.CRITICAL)
        except (ray.exceptions.RayError, OSError, RuntimeError, ValueError) as error:
            raise ConfigError(_no_ray(config.address, first_line(error))) from error
        stack.callback(ray.shutdown)
        yield ray


def _no_ray(address: str | None, reason: str) -> str:
    if address:
        return f"--address {address}: no connection to Ray ({reason}); start it with ray start, or leave --address out"
    return f"--engine ray: Ray cannot be started here ({reason}); start it with ray start and give its --address"


def _require_listener(address: str | None) -> None:
    """Raise OSError when nothing listens at HOST:PORT. Ray would retry for minutes."""
    host, _, port = (address or "").rpartition("/")[2].rpartition(":")
    if port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_WITHIN_S).close()


def _own_ray(config: PrecomputeConfig, stack: contextlib.ExitStack) -> dict[str, Any]:
    base = tempfile.gettempdir()
    directory = tempfile.TemporaryDirectory(
        prefix="teachonce-ray-",
        dir=base if len(base) <= _LONGEST_TEMPORARY_DIRECTORY else "/tmp",
        ignore_cleanup_errors=True,
    )
    return {
        "address": "local",
        "num_cpus": max(os.cpu_count() or 1, config.num_workers or 1),
        "include_dashboard": False,
        "object_store_memory": _OBJECT_STORE_BYTES,
        "_temp_dir": stack.enter_context(directory),
        "_system_config": {"worker_niceness": 0},  # Ray's default, 15, lets all other programs go first
    }


def share_out(config: PrecomputeConfig, nodes: list[dict[str, float]]) -> Share:
    """Divide machines among workers of equal size. nodes: the numbers of `GPU` and `CPU` of each machine.

    A worker gets a GPU if there is any, unless --device is cpu, and as many CPUs as every worker can get. Raises
    ConfigError when there are too few GPUs or CPUs.
    """
    gpus, cpus = ([int(node.get(resource, 0)) for node in nodes] for resource in ("GPU", "CPU"))
    use_gpus = config.device != "cpu" and sum(gpus) > 0
    if config.device == "cuda" and not use_gpus:
        raise ConfigError("--device cuda: Ray knows of no GPU; start Ray with --num-gpus, or give --device cpu")
    largest, unit = (sum(gpus), "GPUs") if use_gpus else (sum(cpus), "CPUs")
    num_workers = config.num_workers or (largest if use_gpus else sum(1 for count in cpus if count))
    if not 1 <= num_workers <= largest:
        raise ConfigError(f"--num-workers is {num_workers}: Ray has {largest} {unit}; expected 1 to {largest}")
    share = max(cpus)
    while share and num_workers > sum(
        min(cpu // share, gpu) if use_gpus else cpu // share for cpu, gpu in zip(cpus, gpus, strict=True)
    ):
        share -= 1
    return Share(num_workers=num_workers, num_gpus=int(use_gpus), num_cpus=share)
