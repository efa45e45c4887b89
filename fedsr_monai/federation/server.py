"""The server of the federation: the global tensors, round by round, with a checkpoint after each round.

It knows neither the network nor how tensors travel: `fedsr federate` and the components for NVIDIA FLARE use the same `Server`.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from fedsr_monai.checks import is_name, is_whole_number
from fedsr_monai.errors import UserError
from fedsr_monai.federation.aggregation import MutualInformation, aggregate, site_weights
from fedsr_monai.federation.policies import find_policy
from fedsr_monai.federation.records import Record, mean_losses, participation_row, read_history
from fedsr_monai.federation.statistics import Statistics, parse_statistics
from fedsr_monai.federation.storage import read_tensors, size_in_bytes, write_tensors
from fedsr_monai.federation.validation import (
    LONGEST_REASON,
    MAX_IMAGES,
    brief,
    plain_tensor,
    screen_norms,
    validate_update,
)
from fedsr_monai.files import is_there, read_json, remove_all_but, sha256, write_json

KEPT_CHECKPOINTS = 2
CHECKPOINT = re.compile(r"round_\d{4,9}\.safetensors")


class TooFewResults(UserError):
    """Report that there are fewer acceptable results than `min_sites`; the round stays open."""


@dataclass(frozen=True)
class Participation:
    """The outcome of a round for one site; `status` is ok, rejected, failed, timeout or absent, and `reason` says why it is not ok."""

    status: str
    reason: str = ""
    images: int | None = None
    statistics: Statistics | None = None
    seconds: float = 0.0
    bytes_up: int = 0


@dataclass
class Server:
    """Keep the global tensors, and the results of the open round.

    A round is `open_round()`, then `receive()` for each result and `report()` for each site without one, then `close_round()`.
    Nothing is averaged before all results have arrived, so their order cannot matter.

    Args:
        folder: folder for checkpoints: `round_NNNN.safetensors` (after NNNN rounds) and `state.json`, which names the last one.
        tensors: the initial global tensors; only what `policy` shares is kept.
        policy: a key of `fedsr_monai.federation.policies.POLICIES`.
        weighting: `images` or `uniform`.
        aggregation: a key of `fedsr_monai.federation.aggregation.RULES`.
        min_sites: the fewest accepted results that complete a round.
        mutual_information: Phi for the SA ascent of a policy that has one; None averages `sa.*` like everything else.
        declared_images: image counts agreed on beforehand, by site. Other claims are rejected.
        max_images: the largest image count accepted from a site that declared none.

    Attributes:
        round: the number of complete rounds, which is also the number of the open round, counted from 0.
        history: one record per complete round, kept with the checkpoint (see `fedsr_monai.federation.records`).
    """

    folder: Path
    tensors: dict[str, torch.Tensor]
    policy: str = "fedsr"
    weighting: str = "images"
    aggregation: str = "mean"
    min_sites: int = 1
    mutual_information: MutualInformation | None = None
    declared_images: Mapping[str, int] = field(default_factory=dict)
    max_images: int = MAX_IMAGES
    round: int = 0
    history: list[Record] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder = Path(self.folder)
        self.tensors = find_policy(self.policy).shared_tensors(self.tensors)
        self.open_round()

    def open_round(self, asked: Sequence[str] | None = None, absent: Mapping[str, str] | None = None) -> None:
        """Discard the results of the open round, and begin (or repeat) it.

        Args:
            asked: the sites that the tensors are sent to; results of other sites are refused. None for any site.
            absent: sites that are not asked, with the reason.
        """
        self.started = time.perf_counter()
        self.asked = None if asked is None else list(asked)
        self.updates: dict[str, dict[str, torch.Tensor]] = {}
        self.results = {site: Participation("absent", reason) for site, reason in (absent or {}).items()}
        self.bytes_down = size_in_bytes(self.tensors)
        self.seconds = time.perf_counter() - self.started

    def send(self) -> dict[str, torch.Tensor]:
        """Return copies of the tensors from which every site starts the open round."""
        return {key: tensor.clone() for key, tensor in self.tensors.items()}

    def receive(
        self,
        site: str,
        update_round: int,
        update: Any,
        statistics: Any,
        seconds: float | None = None,
        bytes_up: int | None = None,
    ) -> list[str]:
        """Accept one site's result, or return the reasons to reject it (see `validate_update`). Never raises, whatever a site sent.

        Args:
            site: the authenticated name of the sender.
            update_round: the round that the result is for.
            update: tensors by key.
            statistics: `images`, and what `parse_statistics` reads.
            seconds: since the round began; by default until now.
            bytes_up: size of the result as it was transferred; by default the size of its tensors, if they are acceptable.
        """
        clock = time.perf_counter()
        accepted: dict[str, torch.Tensor] = {}
        images = None
        try:
            images = statistics.get("images") if isinstance(statistics, Mapping) else None
            reasons = validate_update(
                update,
                self.tensors,
                site,
                images=images,
                update_round=update_round,
                current_round=self.round,
                received=self.updates,
                asked=self.asked,
                declared_images=self.declared_images.get(site) if is_name(site) else None,
                max_images=self.max_images,
            )
            if not reasons:
                # Clones, so that nothing the sender does to its tensors afterwards can change the average.
                dense = {key: plain_tensor(update[key]) for key in sorted(self.tensors)}
                accepted = {key: tensor.clone() for key, tensor in dense.items() if tensor is not None}
        except Exception as error:  # nothing that one site sends may end the run for the others
            found = f"a result that cannot be read ({type(error).__name__})"
            reasons = [f"site {brief(site)}: found {found}, expected tensors by key"]
        reasons = [" ".join(reason.split())[:LONGEST_REASON] for reason in reasons]
        # A late or second result must not change the record of the accepted one, and an unknown sender has no row in the tables.
        known = is_name(site) and (self.asked is None or site in self.asked)
        if known and site not in self.updates:
            plausible = images is not None and is_whole_number(images, 1) and images <= self.max_images
            self.results[site] = Participation(
                "rejected" if reasons else "ok",
                _first(reasons),
                images if plausible else None,
                parse_statistics(statistics),
                self._elapsed() if seconds is None else seconds,
                size_in_bytes(accepted) if bytes_up is None else bytes_up,
            )
            if not reasons:
                self.updates[site] = accepted
        self.seconds += time.perf_counter() - clock
        return reasons

    def report(self, site: str, status: str, reason: str, seconds: float | None = None) -> None:
        """Note that a site has no result for the open round.

        Args:
            site: name of the site; if its result has been accepted already, nothing changes.
            status: failed, timeout, rejected or absent.
            reason: one line.
            seconds: since the round began; by default until now.
        """
        if site not in self.updates:
            seconds = self._elapsed() if seconds is None else seconds
            self.results[site] = Participation(status, " ".join(reason.split())[:LONGEST_REASON], seconds=seconds)

    def close_round(self) -> None:
        """Screen the results, aggregate them, write the checkpoint, record the round and open the next one.

        Raises:
            TooFewResults: fewer than `min_sites` acceptable results.
            UserError: the checkpoint cannot be written.
            In both cases the last complete round stands, on disk and in memory, and the round stays open.
        """
        clock = time.perf_counter()
        for site in self.asked or ():
            if site not in self.results:
                self.report(site, "timeout", "no result before the round was closed")
        for site, reasons in screen_norms(self.updates, self.tensors).items():
            del self.updates[site]
            self.results[site] = replace(self.results[site], status="rejected", reason=_first(reasons))
        if len(self.updates) < self.min_sites:
            raise self._too_few()
        images = {site: self.results[site].images or 0 for site in self.updates}
        weights = site_weights(images, self.weighting, self.declared_images)
        phi = self.mutual_information if find_policy(self.policy).ascends_sa else None
        following = aggregate(self.updates, weights, self.tensors, phi, self.aggregation)
        record = self._record()
        history = [*self.history, record]
        # The checkpoint holds the times up to here; the record for the tables also counts the time to write the checkpoint.
        record |= {"seconds": self._elapsed(), "server_seconds": self.seconds + time.perf_counter() - clock}
        self.save(following, self.round + 1, history)
        record |= {"seconds": self._elapsed(), "server_seconds": self.seconds + time.perf_counter() - clock}
        self.tensors, self.round, self.history = following, self.round + 1, history
        self.open_round()

    def participation(self) -> list[dict[str, Any]]:
        """Return the rows of the open round for the participation table."""
        return [
            participation_row(self.round, site, result, self.bytes_down)
            for site, result in sorted(self.results.items())
        ]

    def begin(self) -> None:
        """Resume from the existing checkpoint (see `resume`), or write the initial one if there is none."""
        if not self.resume():
            self.save(self.tensors, self.round, self.history)

    def save(self, tensors: Mapping[str, torch.Tensor], round: int, history: Sequence[Record]) -> None:
        """Write a checkpoint: first the tensors, then the file that names them, then delete all but the last two."""
        name = f"round_{round:04d}.safetensors"
        content = write_tensors(self.folder / name, tensors)
        state = {
            "round": round,
            "file": name,
            "sha256": hashlib.sha256(content).hexdigest(),
            "policy": self.policy,
            "history": history,
        }
        write_json(self.folder / "state.json", state)
        remove_all_but(list(self.folder.glob("round_*.safetensors")), KEPT_CHECKPOINTS)

    def resume(self) -> bool:
        """Load the last complete round in `folder`; return False if there is none.

        Raises:
            UserError: the checkpoint is damaged, or it belongs to another network or policy.
        """
        path = self.folder / "state.json"
        if not is_there(path):
            return False
        state = read_json(path, "a server state", "restore it from a copy")
        file = checkpoint_file(path, state)
        history = read_history(path, state.get("history"))
        if state.get("round") != len(history):
            raise UserError(
                f"{path}: round",
                found=brief(state.get("round")),
                expected=f"{len(history)}, the number of records",
                fix="restore it from a copy",
            )
        tensors = read_tensors(file)
        found = {key: list(tensor.shape) for key, tensor in tensors.items()}
        expected = {key: list(tensor.shape) for key, tensor in self.tensors.items()}
        for key in sorted(set(found) | set(expected)):
            if found.get(key) != expected.get(key):
                raise UserError(
                    f"{file}: {key}",
                    found=str(found.get(key, "nothing")),
                    expected=str(expected.get(key, "nothing")),
                    fix="continue with the bundle and policy that the run began with, or give another --out",
                )
        self.tensors, self.round, self.history = tensors, len(history), history
        self.open_round()
        return True

    def _elapsed(self) -> float:
        return time.perf_counter() - self.started

    def _record(self) -> Record:
        rows = self.participation()
        found = {site: self.results[site].statistics for site in sorted(self.updates)}
        statistics = {
            site: of_site for site, of_site in found.items() if of_site is not None
        }  # an accepted result has them
        return {
            "round": self.round,
            "seconds": 0.0,
            "server_seconds": 0.0,
            "bytes_down": sum(row["bytes_down"] for row in rows),
            "bytes_up": sum(row["bytes_up"] for row in rows),
            "losses": mean_losses([of_site["losses"] for of_site in statistics.values()]),
            "participation": rows,
            "epochs": [
                {"round": self.round, "site": site, **row}
                for site, of_site in statistics.items()
                for row in of_site["epochs"]
            ],
        }

    def _too_few(self) -> TooFewResults:
        bad = [
            f"{site}: {result.status}: {result.reason}"
            for site, result in sorted(self.results.items())
            if result.status not in ("ok", "absent")
        ]
        accepted = ", ".join(sorted(self.updates)) or "none"
        return TooFewResults(
            f"round {self.round + 1}",
            found=f"{len(self.updates)} acceptable results ({accepted}; {'; '.join(bad)})"
            if bad
            else f"{len(self.updates)} acceptable results ({accepted})",
            expected=f"at least {self.min_sites} (min_sites)",
            fix="fix what the other sites report and run the same command again, or lower min_sites",
        )


def checkpoint_file(path: Path, state: Mapping[str, Any]) -> Path:
    """Return the checkpoint that the server state at `path` names, after a check of its checksum.

    Raises:
        UserError: the state names no checkpoint in its own folder, or the file is missing or has another checksum.
    """
    name, digest = state.get("file"), state.get("sha256")
    if not (isinstance(name, str) and CHECKPOINT.fullmatch(name)):
        raise UserError(
            f"{path}: file",
            found=brief(name),
            expected="the name of a checkpoint beside it",
            fix="restore it from a copy",
        )
    file = path.parent / name
    if not file.is_file():
        raise UserError(
            file, found="no such file", expected=f"the checkpoint that {path.name} names", fix="restore it from a copy"
        )
    if sha256(file) != digest:
        expected = f"those that {path.name} names (sha256 {brief(digest)})"
        raise UserError(file, found="other bytes", expected=expected, fix="restore it from a copy")
    return file


def _first(reasons: Sequence[str]) -> str:
    more = f" ({len(reasons) - 1} more)" if len(reasons) > 1 else ""
    return reasons[0][: LONGEST_REASON - len(more)] + more if reasons else ""
