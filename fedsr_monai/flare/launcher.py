"""Restart a site's job process if it was killed, so that the run goes on with this site.

Since FLARE 2.8, a job process that dies at one site fails the whole job, however many sites are left. A job launcher is FLARE's
extension point for how a site runs its job processes. This one starts the process again. The new process connects under the same name,
FLARE sends it the task that the old one had, and `FedSRExecutor` resumes from the state on disk. This module imports nothing but FLARE,
because it is loaded by the site's parent process, which lives on between jobs.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable
from pathlib import Path

from nvflare.apis.fl_constant import FLContextKey, FLMetaKey, JobConstants
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_launcher_spec import JobHandleSpec, JobReturnCode
from nvflare.app_common.job_launcher.client_process_launcher import ClientProcessJobLauncher
from nvflare.app_common.job_launcher.process_launcher import ProcessHandle


class RestartingJobLauncher(ClientProcessJobLauncher):
    """Launch job processes like FLARE's `ClientProcessJobLauncher`, and restart those that a signal has killed.

    `fedsr flare-site` puts it into the site's `local/resources.json` in place of FLARE's own launcher. A process that ends by itself is
    not restarted, whatever its exit code.

    Args:
        restarts: largest number of restarts per job. Once they are used up, the job continues without this site, unless it needs it.
        delay: seconds before a restart.
    """

    def __init__(self, restarts: int = 3, delay: float = 2.0) -> None:
        super().__init__()
        self.restarts = restarts
        self.delay = delay

    def launch_job(self, job_meta: dict, fl_ctx: FLContext) -> JobHandleSpec:
        """Start the process of a job, and return the handle that restarts it."""
        workspace = fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT)
        run_folder = Path(workspace.get_run_dir(job_meta.get(JobConstants.JOB_ID)))
        start = functools.partial(super().launch_job, job_meta, fl_ctx)
        return RestartingHandle(start, run_folder / FLMetaKey.PROCESS_RC_FILE, self.restarts, self.delay)


class RestartingHandle(JobHandleSpec):
    """A job process that is started again when a signal kills it.

    Args:
        start: starts the process.
        code_file: file in which FLARE's processes leave their exit code when they end by themselves; some then kill themselves.
        restarts, delay: see `RestartingJobLauncher`.
    """

    def __init__(self, start: Callable[[], ProcessHandle], code_file: Path, restarts: int, delay: float) -> None:
        super().__init__()
        self.start = start
        self.code_file = code_file
        self.restarts = restarts
        self.delay = delay
        self.ended = threading.Event()  # set when FLARE ends the process, which must not be restarted then
        self.lock = threading.Lock()
        self.logger = logging.getLogger(type(self).__name__)
        self.process = start()

    def killed(self) -> bool:
        """Return whether a signal killed the process, without FLARE or the process itself having ended it."""
        code = self.process.adapter.poll()
        return code is not None and code < 0 and not self.ended.is_set() and not self.code_file.exists()

    def wait(self) -> None:
        """Wait until the process has ended by itself or by FLARE, or was killed with no restarts left."""
        self.process.wait()
        while self.killed() and self.restarts > 0:
            signal = -self.process.adapter.poll()
            self.restarts -= 1
            self.logger.warning(
                f"signal {signal} has killed the job process: restarting it ({self.restarts} restarts left)"
            )
            self.ended.wait(self.delay)
            with self.lock:
                if self.ended.is_set():
                    return
                self.process = self.start()
            self.process.wait()

    def poll(self) -> int:
        """Return FLARE's return code; for a killed process it is "unknown", which FLARE does not report as a failure of the job."""
        return JobReturnCode.UNKNOWN if self.killed() else self.process.poll()

    def terminate(self) -> None:
        """End the process for good."""
        with self.lock:
            self.ended.set()
            self.process.terminate()
