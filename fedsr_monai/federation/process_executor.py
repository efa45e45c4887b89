"""One process per site: the same work as with `SequentialExecutor`, but in parallel, and a site that dies or hangs does not stop the others.

Orders and replies are JSON over a pipe, and tensors are safetensors files, so nothing that comes from a site is unpickled.
"""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.process
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from monai.fl.utils.exchange_object import ExchangeObject

from fedsr_monai.errors import UserError, one_line
from fedsr_monai.federation.algo import ROUND, FedSRAlgo
from fedsr_monai.federation.executors import ClientResult, SiteJob, Tensors, site_job
from fedsr_monai.federation.storage import read_tensors, write_tensors


class ProcessExecutor:
    """Run the sites in parallel, each in a process of its own, which is started when first needed and again after a failure.

    The CPU threads are divided among the sites. With the same number of threads, the result is bit for bit that of `SequentialExecutor`.

    Args:
        jobs: the sites.
        timeout: seconds that a site has for a round, including the start of its process; None for no limit.
    """

    def __init__(self, jobs: Sequence[SiteJob], timeout: float | None = None) -> None:
        self.jobs = {job.name: job for job in jobs}
        self.timeout = timeout
        self.running: dict[str, tuple[multiprocessing.process.BaseProcess, Connection]] = {}

    def initial(self) -> Tensors:
        """Return the tensors to begin with; see `Executor`.

        Raises:
            UserError: the first site cannot start.
        """
        site = min(self.jobs)
        path = self.file(site, "initial")
        (result,) = self.ask({site: {"order": "initial", "to": str(path)}})
        if result.status != "ok":
            raise UserError(f"site {site!r}: cannot start: {result.reason}")
        return take(path)

    def train(self, sites: Sequence[str], round: int, tensors: Tensors) -> Iterator[ClientResult]:
        """Yield the result of one round at each of `sites` as soon as it is ready; see `Executor`."""
        orders = {}
        for site in sites:
            write_tensors(self.file(site, "down"), tensors)
            files = {"from": str(self.file(site, "down")), "to": str(self.file(site, "up"))}
            orders[site] = {"order": "train", "round": round, **files}
        for result in self.ask(orders):
            self.file(result.site, "down").unlink(missing_ok=True)
            if result.status == "ok":
                result.tensors = take(self.file(result.site, "up"))
            yield result

    def save_models(self, tensors: Tensors) -> None:
        """Write every site's whole network to its `model.pt`.

        Raises:
            UserError: a site cannot write its file; the rounds are complete nevertheless.
        """
        orders = {}
        for site, job in self.jobs.items():
            write_tensors(self.file(site, "down"), tensors)
            files = {"from": str(self.file(site, "down")), "to": str(Path(job.folder) / "model.pt")}
            orders[site] = {"order": "save", **files}
        bad = [f"site {result.site!r}: {result.reason}" for result in self.ask(orders) if result.status != "ok"]
        for site in self.jobs:
            self.file(site, "down").unlink(missing_ok=True)
        if bad:
            raise UserError(
                f"{'; '.join(sorted(bad))}; the rounds are complete, run the same command again for model.pt"
            )

    def close(self) -> None:
        """End the sites' processes."""
        for site in list(self.running):
            self.stop(site, grace=5.0)

    def file(self, site: str, name: str) -> Path:
        """Return the path of a file in which tensors travel to or from a site."""
        return Path(self.jobs[site].folder) / f"{name}.safetensors"

    def start(self, site: str) -> Connection:
        """Return the pipe to a site's process, which is started if it is not running."""
        if site not in self.running:
            # The sites get fresh interpreters without this process's state, yet torch and MONAI are imported once, not once per site.
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload([__name__])
            ours, theirs = context.Pipe()
            threads = max(1, torch.get_num_threads() // len(self.jobs))
            # Not a daemon, because a daemon may not start the workers of a data loader.
            process = context.Process(
                target=serve, args=(json.dumps(asdict(self.jobs[site])), threads, theirs), name=site
            )
            process.start()
            theirs.close()
            self.running[site] = process, ours
        return self.running[site][1]

    def stop(self, site: str, grace: float = 0.0) -> int | None:
        """End a site's process, by force after `grace` seconds, and return its exit code."""
        process, connection = self.running.pop(site)
        connection.close()  # a site that waits for orders ends by itself
        process.join(grace)
        process.kill()
        process.join()
        return process.exitcode

    def ask(self, orders: dict[str, dict[str, Any]]) -> Iterator[ClientResult]:
        """Give each site its order, then yield the results; a site that dies or is too slow is stopped, and its result says so."""
        started = time.perf_counter()
        waiting: dict[Any, str] = {}
        for site, order in orders.items():
            self.file(site, "up").unlink(missing_ok=True)
            connection = self.start(site)
            try:
                connection.send_bytes(json.dumps(order).encode())
            except OSError:  # it died since its last answer: start it anew, once
                self.stop(site)
                connection = self.start(site)
                connection.send_bytes(json.dumps(order).encode())
            waiting[connection] = site
        while waiting:
            left = None if self.timeout is None else max(0.0, started + self.timeout - time.perf_counter())
            ready: list[Any] = wait(list(waiting), left)
            if not ready:
                for site in waiting.values():
                    self.stop(site)
                    yield ClientResult(
                        site, "timeout", f"no answer within {self.timeout:g} s", seconds=time.perf_counter() - started
                    )
                return
            for connection in ready:
                site = waiting.pop(connection)
                try:
                    reply = json.loads(connection.recv_bytes())
                except (EOFError, OSError):
                    reply = {
                        "status": "failed",
                        "reason": f"its process ended with exit code {self.stop(site, grace=5.0)}",
                    }
                yield ClientResult(site, seconds=time.perf_counter() - started, **reply)


def take(path: Path) -> Tensors:
    """Read and remove the tensors that a site has written."""
    tensors = read_tensors(path)
    path.unlink()
    return tensors


def serve(job: str, threads: int, connection: Connection) -> None:
    """Carry out orders until the pipe is closed; this is the main function of a site's process.

    Args:
        job: a `SiteJob` as JSON.
        threads: CPU threads of torch.
        connection: the pipe.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent sees the interrupt and ends this process
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a process of its own
    threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()
    torch.set_num_threads(threads)
    algo: FedSRAlgo | None = None
    while True:
        try:
            order = json.loads(connection.recv_bytes())
        except (EOFError, OSError):
            return
        try:
            algo = algo or site_job(json.loads(job)).make_algo()
            reply = {"status": "ok", **carry_out(algo, order)}
        except Exception as error:
            reply = {"status": "failed", "reason": one_line(error)}
        connection.send_bytes(json.dumps(reply).encode())


def carry_out(algo: FedSRAlgo, order: dict[str, Any]) -> dict[str, Any]:
    """Carry out one order (`initial`, `train` or `save`) and return the reply; tensors are exchanged in the files that the order names."""
    if order["order"] == "save":
        algo.save_model(read_tensors(order["from"]), order["to"])
        return {}
    if order["order"] == "train":
        algo.train(ExchangeObject(weights=read_tensors(order["from"])), {ROUND: order["round"]})
    result = algo.get_weights()
    write_tensors(order["to"], result.weights or {})
    return {"statistics": result.statistics}
