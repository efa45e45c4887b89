"""The server of the federation: the global tensors, round by round, with a checkpoint after each.

It knows neither the network nor how tensors travel: `fedsr federate` drives it, and another transport could.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fedsr_monai.errors import UserError
from fedsr_monai.federation.aggregation import MutualInformation, aggregate, site_weights
from fedsr_monai.federation.exchange import shared_tensors
from fedsr_monai.federation.storage import read_tensors, write_tensors
from fedsr_monai.federation.validation import MAX_IMAGES, screen_norms, validate_update
from fedsr_monai.files import remove_all_but, write_json

KEPT_CHECKPOINTS = 2


class TooFewAnswers(UserError):
    """Fewer acceptable answers than `min_sites`; the round stays open."""


@dataclass
class Server:
    """Global tensors and the answers of the open round.

    A round is `send()` once, `receive()` for each answer, then `finish_round()`. Nothing is averaged before all answers are in, so
    their order cannot matter.

    Args:
        folder: where checkpoints go: `round_NNNN.safetensors` (NNNN rounds are complete) and `state.json`, which names the last.
        tensors: the initial global tensors; only what `policy` shares is kept.
        policy: a key of `fedsr_monai.federation.exchange.POLICIES`.
        weighting: `images` or `uniform`.
        min_sites: the fewest accepted answers that make a round.
        mutual_information: Phi for the SA ascent; None averages `sa.*` like everything else.
        declared_images: image counts agreed on beforehand, by site. Other claims are rejected.
        max_images: the largest image count accepted from a site that declared none.
    """

    folder: Path
    tensors: dict[str, torch.Tensor]
    policy: str = "fedsr"
    weighting: str = "images"
    min_sites: int = 1
    mutual_information: MutualInformation | None = None
    declared_images: Mapping[str, int] = field(default_factory=dict)
    max_images: int = MAX_IMAGES
    round: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder = Path(self.folder)
        self.tensors = shared_tensors(self.tensors, self.policy)
        self.answers: dict[str, dict[str, torch.Tensor]] = {}
        self.statistics: dict[str, dict[str, Any]] = {}
        self.rejected: dict[str, list[str]] = {}

    def send(self) -> dict[str, torch.Tensor]:
        """Copies of the tensors that every site starts the open round from."""
        return {key: tensor.clone() for key, tensor in self.tensors.items()}

    def receive(self, site: str, update_round: int, update: Any, statistics: Mapping[str, Any]) -> list[str]:
        """Take one site's answer, or say why not (see `validate_update`). It never raises for what a site sent."""
        reasons = validate_update(
            update,
            self.tensors,
            site,
            statistics=statistics,
            update_round=update_round,
            current_round=self.round,
            received=self.answers,
            declared_images=self.declared_images.get(site),
            max_images=self.max_images,
        )
        if reasons:
            # A late or second answer says nothing against the one that counts.
            if site not in self.answers:
                self.rejected[site] = reasons
            return reasons
        self.answers[site] = {key: torch.as_tensor(update[key]).detach().cpu() for key in sorted(update)}
        self.statistics[site] = dict(statistics)
        self.rejected.pop(site, None)
        return []

    def screen(self) -> dict[str, list[str]]:
        """Move answers whose update is far larger than the others' to `rejected`; returns the reasons of these."""
        reasons = screen_norms(self.answers, self.tensors)
        for site, lines in reasons.items():
            del self.answers[site]
            self.rejected[site] = lines
        return reasons

    def finish_round(self, record: Mapping[str, Any] | None = None) -> dict[str, torch.Tensor]:
        """Screen, aggregate, write the checkpoint, open the next round; returns the new global tensors.

        Args:
            record: what the caller wants in `history` about this round (JSON); kept with the checkpoint, thus never out of step.

        Raises:
            TooFewAnswers: fewer than `min_sites` acceptable answers.
            UserError: the checkpoint cannot be written.
            In both cases the last complete round stands, on disk and in memory, and the round stays open.
        """
        self.screen()
        if len(self.answers) < self.min_sites:
            raise TooFewAnswers(
                f"round {self.round + 1}: found {len(self.answers)} acceptable answers ({', '.join(sorted(self.answers)) or 'none'}), "
                f"expected at least {self.min_sites} (min_sites)"
            )
        weights = site_weights({site: self.statistics[site]["images"] for site in self.answers}, self.weighting)
        phi = self.mutual_information if self.policy == "fedsr" else None
        following = aggregate(self.answers, weights, self.tensors, phi)
        history = [*self.history, dict(record or {})]
        self.save(following, self.round + 1, history)
        self.tensors, self.round, self.history = following, self.round + 1, history
        self.open_round()
        return self.send()

    def open_round(self) -> None:
        """Forget the answers to the open round, as after a round or before its second attempt."""
        self.answers, self.statistics, self.rejected = {}, {}, {}

    def begin(self) -> None:
        """Write the checkpoint of the very beginning, or go on from the one that is there (see `resume`)."""
        if not self.resume():
            self.save(self.tensors, self.round, self.history)

    def save(self, tensors: Mapping[str, torch.Tensor], round: int, history: list[dict[str, Any]]) -> None:
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
        """Go on from the last complete round in `folder`; False if there is none.

        Raises:
            UserError: the checkpoint is damaged, or it belongs to another network or policy.
        """
        path = self.folder / "state.json"
        if not path.exists():
            return False
        try:
            state = json.loads(path.read_bytes())
            file, digest, number, history = (
                self.folder / state["file"],
                state["sha256"],
                state["round"],
                state["history"],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: found damaged JSON ({error}), expected a server state; restore it from a copy"
            ) from error
        tensors = read_tensors(file)
        if hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            raise UserError(
                f"{file}: found other bytes than state.json names, expected sha256 {digest}; restore it from a copy"
            )
        found = {key: list(tensor.shape) for key, tensor in tensors.items()}
        expected = {key: list(tensor.shape) for key, tensor in self.tensors.items()}
        for key in sorted(set(found) | set(expected)):
            if found.get(key) != expected.get(key):
                raise UserError(
                    f"{file}: {key}: found {found.get(key, 'nothing')}, expected {expected.get(key, 'nothing')}; "
                    "continue with the bundle and policy that the run began with, or give another --out"
                )
        self.tensors, self.round, self.history = tensors, number, history
        self.open_round()
        return True
