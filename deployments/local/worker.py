"""Workers of a pool on this machine: one for each GPU, where the pool is for GPUs."""

import argparse
import os
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.console import Console

from deployments.errors import ConfigurationError
from deployments.local.processes import Processes
from deployments.reconcile.api import Api, connected


@dataclass
class Worker:
    """A worker to be: its name, how many runs it takes at once, and what it sees of the machine."""

    pool: str
    name: str
    limit: int | None = None
    env: Mapping[str, str] = field(default_factory=dict)

    def start(self, processes: Processes, url: str | None = None) -> None:
        """Start it: `prefect worker start`."""
        words = ["--pool", self.pool, "--name", self.name, "--no-create-pool-if-not-found", "--install-policy", "never"]
        limit = ["--limit", str(self.limit)] if self.limit else []
        api = {"PREFECT_API_URL": url} if url else {}
        processes.prefect(f"worker {self.name}", "worker", "start", *words, *limit, env={**self.env, **api})


def main(words: list[str]) -> int:
    """`python -m deployments worker gpu`: start the workers of a pool and wait.

    Returns:
        0 after Ctrl-C, 1 when a worker ended by itself.
    """
    given = parser().parse_args(words)
    with connected() as api:
        workers = workers_of(api, given.pool, given.limit, given.gpus_per_run)
    out = Console(soft_wrap=True, highlight=False)
    try:
        with Processes() as processes:
            for worker in workers:
                out.print(described(worker))
                worker.start(processes)
            out.print(f"{processes.wait()} ended")
            return 1
    except KeyboardInterrupt:
        return 0


def parser() -> argparse.ArgumentParser:
    """The options of `python -m deployments worker`."""
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
    """The workers that this machine is good for.

    Prefect's process worker has no slots to give devices to, so each GPU, or group of them, gets a worker of its own
    that takes one run at a time; what it sees is handed down to its runs.

    Raises:
        ConfigurationError: If there is no such pool, or it has more GPUs per run than this machine.
    """
    found = api.get("/work_pools/{name}", name=pool)
    if not found:
        raise ConfigurationError(
            f"There is no work pool `{pool}`: `python -m deployments pools` makes those of `pools.yaml`."
        )
    host = socket.gethostname()
    devices = gpus() if pool.startswith("gpu") and found["type"] == "process" else []
    if not devices:
        alone = 1 if pool.startswith("gpu") and found["type"] != "kubernetes" else None
        return [Worker(pool, f"{host}-{pool}", limit or alone)]
    groups = [devices[at : at + gpus_per_run] for at in range(0, len(devices) - gpus_per_run + 1, gpus_per_run)]
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
    """The GPUs this process may use, as `nvidia-smi` numbers them."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [each.strip() for each in visible.split(",") if each.strip()]
    try:
        said = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return said.stdout.split()


def described(worker: Worker) -> str:
    """A line about it."""
    gpu = worker.env.get("CUDA_VISIBLE_DEVICES")
    what = f"GPU {gpu}" if gpu else "no GPU found, so on the CPU" if worker.pool.startswith("gpu") else "no GPU needed"
    limit = {None: "as many runs as come", 1: "one run at a time"}.get(worker.limit, f"{worker.limit} runs at once")
    return f"worker {worker.name}: {what}, {limit}"
