"""Aggregate under FLARE: the same `Server` as in `fedsr federate`, fed with what FLARE delivers."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import torch
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.aggregator import Aggregator
from nvflare.app_common.app_constant import AppConstants

from fedsr_monai.federation.records import write_tables
from fedsr_monai.federation.round import close_round
from fedsr_monai.federation.server import Server
from fedsr_monai.federation.validation import check_tensors, screen_norms
from fedsr_monai.flare.exchange import global_dxo, read_update, size_of
from fedsr_monai.flare.installed import Installed

SITE = "fedsr_site"  # in the server's own context: the authenticated sender, set by the controller


class FedSRAggregator(Installed, Aggregator):
    """Check every result when it arrives, and aggregate when the round is over.

    Args:
        persistor_id: the component that holds the run's `Server`.
    """

    def __init__(self, persistor_id: str = "persistor") -> None:
        super().__init__()
        self.persistor_id = persistor_id
        # Each result arrives in a thread of its own, and a late one may even arrive during the aggregation.
        self.lock = threading.Lock()

    def server(self, fl_ctx: FLContext) -> Server:
        """Return the run's server."""
        return fl_ctx.get_engine().get_component(self.persistor_id).server

    def begin_run(self, site: str, shareable: Shareable, fl_ctx: FLContext) -> bool:
        """Begin the run with the SA vectors of one site's atlas, as `fedsr federate` does.

        Returns:
            False if they are not acceptable; the log then says why.
        """
        persistor = fl_ctx.get_engine().get_component(self.persistor_id)
        missing = persistor.missing()
        try:
            tensors, _ = read_update(shareable, missing)
            reasons = check_tensors(tensors, missing, f"site {site!r}")
            if not reasons:
                tensors = {key: torch.tensor(value) for key, value in tensors.items()}
                reasons = screen_norms({site: tensors}, missing).get(site, [])
        except Exception as error:  # as in `accept`
            reasons = [f"site {site!r}: found a result that cannot be read ({_text(error)}), expected SA features"]
        for reason in reasons:
            self.log_warning(fl_ctx, f"initial SA features refused: {reason}")
        if not reasons:
            persistor.begin(tensors)
        return not reasons

    def open_round(self, asked: Sequence[str], absent: Mapping[str, str], fl_ctx: FLContext) -> None:
        """Begin a round.

        Args:
            asked: names of the sites that the global tensors are sent to.
            absent: the reason for each site that is not asked, by name.
        """
        with self.lock:
            self.server(fl_ctx).open_round(asked, absent)

    def accept(self, shareable: Shareable, fl_ctx: FLContext) -> bool:
        """Receive one result; never raises.

        Returns:
            False if the result is not acceptable; the records and the log then say why.
        """
        site = fl_ctx.get_prop(SITE)
        with self.lock:
            server = self.server(fl_ctx)
            try:
                tensors, statistics = read_update(shareable, server.tensors)
                # FLARE's client returns the task's cookies: they name the round that the result is for.
                number, size = shareable.get_cookie(AppConstants.CONTRIBUTION_ROUND), size_of(shareable)
            except Exception as error:  # nothing that one site sends may end the run for the others
                found = f"found a result that cannot be read ({_text(error)})"
                reasons = [f"site {site!r}: {found}, expected encoder and SA features"]
                server.report(site, "rejected", reasons[0])
            else:
                reasons = server.receive(site, number, tensors, statistics, bytes_up=size)
        for reason in reasons:
            self.log_warning(fl_ctx, f"rejected: {reason}")
        return not reasons

    def failed(self, site: str, reason: str, fl_ctx: FLContext) -> None:
        """Record that `site` answered with an error."""
        with self.lock:
            self.server(fl_ctx).report(site, "failed", reason)

    def aggregate(self, fl_ctx: FLContext) -> Shareable:
        """Return the next global tensors, after the checkpoint and the tables have been written.

        Raises:
            UserError: too few acceptable results. FLARE then ends the job with this message; the last complete round stands.
        """
        with self.lock:
            server = self.server(fl_ctx)
            close_round(server, fl_ctx.get_engine().get_component(self.persistor_id).out)
            return global_dxo(server.send()).to_shareable()

    def interrupt(self, fl_ctx: FLContext) -> None:
        """Write the rows of a round that the end of the job leaves open: who had answered, and who was missing."""
        with self.lock:
            server = self.server(fl_ctx)
            for site in server.asked or ():
                if site not in server.results:
                    server.report(site, "timeout", "no result before the job ended")
            out = fl_ctx.get_engine().get_component(self.persistor_id).out
            write_tables(out, server.history, server.participation())


def _text(error: Exception) -> str:
    """Return an error as a short line: the message of a `ValueError`, but only the type of any other error."""
    return " ".join(str(error).split())[:200] if type(error) is ValueError else type(error).__name__
