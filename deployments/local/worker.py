"""`python -m deployments worker`: workers of a pool on this machine, one per GPU in a GPU pool."""

import argparse
import os
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.console import Console

from deployments.errors import ConfigurationError
from deployments.local.processes import Processes
from deployments.reconcile.api import Api, connect


@dataclass
class Worker:
    """The configuration of a worker.

    Attributes:
        pool: Name of the work pool.
        name: Name of the worker.
        limit: Maximum of concurrent flow runs; unlimited when `None`.
        env: Environment variables, which its flow runs inherit.
    """

    pool: str
    name: str
    limit: int | None = None
    env: Mapping[str, str] = field(default_factory=dict)

    def start(self, processes: Processes, url: str | None = None) -> None:
        """Start the worker with `prefect worker start`."""
        words = ["--pool", self.pool, "--name", self.name, "--no-create-pool-if-not-found", "--install-policy", "never"]
        limit = ["--limit", str(self.limit)] if self.limit else []
        api = {"PREFECT_API_URL": url} if url else {}
        processes.prefect(f"worker {self.name}", "worker", "start", *words, *limit, env={**self.env, **api})


def main(words: list[str]) -> int:
    """Start the workers of a pool and wait for Ctrl-C.

    Returns:
        Exit status: 0 after Ctrl-C, 1 when a worker ended by itself.
    """
    options = parser().parse_args(words)
    with connect() as api:
        workers = workers_of(api, options.pool, options.limit, options.gpus_per_run)
    out = Console(soft_wrap=True, highlight=False)
    try:
        with Processes() as processes:
            for worker in workers:
                out.print(describe(worker))
                worker.start(processes)
            out.print(f"{processes.wait()} ended")
            return 1
    except KeyboardInterrupt:
        return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of `python -m deployments worker`."""
    parser = argparse.ArgumentParser(
        prog="python -m deployments worker",
        description="Start the workers of a pool on this machine. In a pool whose name begins with `gpu`, one for each "
        "GPU, which its runs alone see (`CUDA_VISIBLE_DEVICES`), one run at a time.",
    )
    parser.add_argument("pool", nargs="?", default="api", metavar="POOL", help="the work pool (default: api)")
    parser.add_argument("--limit", type=int, metavar="N", help="runs at once (default: one per GPU, else all)")
    parser.add_argument("--gpus-per-run", type=int, default=1, metavar="N", help="GPUs of each worker (default: 1)")
    return parser


def workers_of(api: Api, pool: str, limit: int | None = None, gpus_per_run: int = 1) -> list[Worker]:
    """Return the workers of a pool for this machine.

    Prefect's process worker cannot assign devices to runs. Each GPU, or group of GPUs, therefore gets a worker of its
    own, which executes one run at a time and passes `CUDA_VISIBLE_DEVICES` on to it.

    Raises:
        ConfigurationError: If there is no such pool, or this machine has fewer GPUs than a run needs.
    """
    actual = api.get("/work_pools/{name}", name=pool)
    if not actual:
        raise ConfigurationError(
            f"There is no work pool `{pool}`: `python -m deployments pools` makes those of `pools.yaml`."
        )
    host = socket.gethostname()
    devices = gpus() if pool.startswith("gpu") and actual["type"] == "process" else []
    if not devices:
        default = 1 if pool.startswith("gpu") and actual["type"] != "kubernetes" else None
        return [Worker(pool, f"{host}-{pool}", limit or default)]
    starts = range(0, len(devices) - gpus_per_run + 1, gpus_per_run)
    groups = [devices[start : start + gpus_per_run] for start in starts]
    if not groups:
        raise ConfigurationError(f"This machine has {len(devices)} GPUs, fewer than `--gpus-per-run {gpus_per_run}`.")
    return [
        Worker(
            pool,
            f"{host}-{pool}-{'-'.join(group)}",
            limit or 1,
            {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(group)},
        )
        for group in groups
    ]


def gpus() -> list[str]:
    """Return the GPUs that this process may use, as `nvidia-smi` numbers them."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [each.strip() for each in visible.split(",") if each.strip()]
    try:
        listing = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return listing.stdout.split()


def describe(worker: Worker) -> str:
    """Return a line about a worker for the terminal."""
    gpu = worker.env.get("CUDA_VISIBLE_DEVICES")
    device = (
        f"GPU {gpu}" if gpu else "no GPU found, so on the CPU" if worker.pool.startswith("gpu") else "no GPU needed"
    )
    limit = {None: "as many runs as come", 1: "one run at a time"}.get(worker.limit, f"{worker.limit} runs at once")
    return f"worker {worker.name}: {device}, {limit}"
