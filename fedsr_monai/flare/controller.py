"""Control a run: FLARE's scatter-and-gather, with authenticated names, resumable rounds, and a final task that saves the sites' models."""

from __future__ import annotations

from typing import Any

from nvflare.apis.controller_spec import ClientTask, Task
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.workflows.scatter_and_gather import ScatterAndGather

from fedsr_monai.flare.aggregator import SITE
from fedsr_monai.flare.exchange import global_dxo
from fedsr_monai.flare.executor import ERROR, INITIAL, SAVE, TRAIN
from fedsr_monai.flare.installed import Installed

FIRST_ANSWER = (
    600  # least time in seconds for a site's first answer, because its process first imports and builds everything
)


class FedSRController(Installed, ScatterAndGather):
    """Run `ScatterAndGather` with six changes.

    - Each result is accepted under the name that FLARE authenticated, not under one that the result claims.
    - A new run begins with the SA vectors of the first site's atlas (first by name; if that site fails, the next one's).
    - A job resumes after the last round that an earlier job completed; `rounds` includes the earlier rounds.
    - A site that FLARE reports as disconnected is not asked, so that it does not cost the waiting time in every round.
    - When a job is aborted in the middle of a round, the table of participation shows that round too.
    - After the last round the sites receive the global tensors once more, and save their models.

    Args:
        rounds: communication rounds in total, including those of earlier jobs.
        sites: names of the sites that should take part, for the records.
        min_clients: results (also rejected ones) after which `wait_time_after_min_received` begins.
        wait_time_after_min_received: seconds that the other sites then have.
        train_timeout: seconds that a round may take in total; 0 for no limit.
    """

    def __init__(
        self,
        rounds: int,
        sites: list[str] | None = None,
        min_clients: int = 1,
        wait_time_after_min_received: int = 600,
        train_timeout: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            min_clients=min_clients,
            num_rounds=rounds,
            wait_time_after_min_received=wait_time_after_min_received,
            train_timeout=train_timeout,
            train_task_name=TRAIN,
            persistor_id="persistor",
            ignore_result_error=True,  # a site's error is in the records; the aggregator decides whether enough is left
            snapshot_every_n_rounds=0,  # the persistor's checkpoint is the state
            **kwargs,
        )
        self.rounds = rounds
        self.sites = list(sites or [])

    def start_controller(self, fl_ctx: FLContext) -> None:
        """Load the run's state, and count rounds from there."""
        super().start_controller(fl_ctx)
        if getattr(self.persistor, "server", None) is not None:
            self._start_round = self.persistor.server.round
            self._num_rounds = max(0, self.rounds - self._start_round)
            fl_ctx.set_prop(AppConstants.START_ROUND, self._start_round, private=True, sticky=True)
            fl_ctx.set_prop(AppConstants.NUM_ROUNDS, self._num_rounds, private=True, sticky=False)

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """Begin or resume the run, run its rounds, and let every site save its model."""
        if not self.persistor.begun and not self.begin_run(abort_signal, fl_ctx):
            return
        super().control_flow(abort_signal, fl_ctx)
        if self.persistor.server.round < self.rounds:
            self.aggregator.interrupt(fl_ctx)
            return
        if abort_signal.triggered:
            return
        self.log_info(fl_ctx, "The rounds are complete: every site saves its model.")
        task = Task(
            name=SAVE, data=global_dxo(self.persistor.server.send()).to_shareable(), timeout=self._train_timeout
        )
        self.broadcast_and_wait(
            task=task,
            fl_ctx=fl_ctx,
            min_responses=self._min_clients,
            wait_time_after_min_received=self._wait_time_after_min_received,
            abort_signal=abort_signal,
        )

    def begin_run(self, abort_signal: Signal, fl_ctx: FLContext) -> bool:
        """Ask one site after another for the initial SA vectors.

        Returns:
            False if the job has to end, because it was aborted or no site gave acceptable vectors.
        """

        def receive(client_task: ClientTask, fl_ctx: FLContext) -> None:
            if client_task.result.get_return_code() == ReturnCode.OK:
                self.aggregator.begin_run(client_task.client.name, client_task.result, fl_ctx)

        seconds = self._train_timeout or max(FIRST_ANSWER, self._wait_time_after_min_received)
        for name in self.connected()[0]:
            task = Task(name=INITIAL, data=Shareable(), timeout=seconds, result_received_cb=receive)
            super().broadcast_and_wait(
                task=task, fl_ctx=fl_ctx, targets=[name], min_responses=1, abort_signal=abort_signal
            )
            if abort_signal.triggered:
                return False
            if self.persistor.begun:
                self._global_weights = self.persistor.learnable()
                return True
            self.log_warning(fl_ctx, f"site {name!r} gave no initial SA features: asking the next site")
        self.system_panic("no site gave initial SA features: see the log of each site", fl_ctx)
        return False

    def connected(self) -> tuple[list[str], dict[str, str]]:
        """Return the sorted names of the sites to ask, and the reason for each other site, by name."""
        names = sorted(client.name for client in self._engine.get_clients())
        absent = {name: "not connected" for name in self.sites if name not in names}
        absent |= {name: "disconnected" for name in names if self.get_client_disconnect_time(name)}
        return [name for name in names if name not in absent], absent

    def broadcast_and_wait(self, task: Task, fl_ctx: FLContext, targets: Any = None, **kwargs: Any) -> None:
        """Send a task to the connected sites only."""
        asked, absent = self.connected()
        if task.name == TRAIN:
            self.aggregator.open_round(asked, absent, fl_ctx)
        super().broadcast_and_wait(task=task, fl_ctx=fl_ctx, targets=asked or None, **kwargs)

    def _accept_train_result(self, client_name: str, result: Shareable, fl_ctx: FLContext, **kwargs: Any) -> bool:
        fl_ctx.set_prop(SITE, client_name, private=True, sticky=False)
        code = result.get_return_code()
        if code and code != ReturnCode.OK:
            self.aggregator.failed(client_name, error_text(code, result), fl_ctx)
        return super()._accept_train_result(client_name, result, fl_ctx, **kwargs)


def error_text(code: Any, result: Shareable) -> str:
    """Return one line about a result that is an error; it repeats at most one plain word of what the site wrote."""
    kind = result.get_header(ERROR)
    word = kind[:60] if isinstance(kind, str) and kind.isidentifier() else str(code)[:60]
    return f"{word} at the site; see its log"
