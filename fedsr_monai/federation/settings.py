"""What defines a run, once: the sites' jobs, a job for NVIDIA FLARE and `run.json` are made from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from fedsr_monai.checks import check_choice, check_whole_number
from fedsr_monai.errors import UserError
from fedsr_monai.federation.aggregation import RULES, WEIGHTINGS
from fedsr_monai.federation.policies import Policy, find_policy


@dataclass(frozen=True)
class RunSettings:
    """Describe a run by plain values, which travel as JSON; nothing in it is a path or is executed by itself.

    Attributes:
        rounds: communication rounds in all.
        policy: what is exchanged, a key of `fedsr_monai.federation.policies.POLICIES`.
        local_epochs: epochs that a site trains in each round.
        seed: of everything random.
        weighting: of the sites in the aggregation, by number of `images` or `uniform`.
        aggregation: the server's rule, a key of `fedsr_monai.federation.aggregation.RULES`.
        min_sites: fewest acceptable results that make a round.
        overrides: values for ids of the bundle's configuration.
        baseline: a method that takes the place of FedSR: a file of the bundle's `configs/baselines/`, without its ending.

    Raises:
        UserError: a value is not what it must be.
    """

    where: ClassVar[str] = ""  # before the name of a setting in a message

    rounds: int
    policy: str = "fedsr"
    local_epochs: int = 1
    seed: int = 0
    weighting: str = "images"
    aggregation: str = "mean"
    min_sites: int = 1
    overrides: Mapping[str, Any] = field(default_factory=dict)
    baseline: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("rounds", 1), ("local_epochs", 1), ("seed", 0), ("min_sites", 1)):
            check_whole_number(f"{self.where}{name}", getattr(self, name), least)
        for name, choices in (("weighting", WEIGHTINGS), ("aggregation", RULES)):
            check_choice(f"{self.where}{name}", getattr(self, name), choices)
        if not isinstance(self.overrides, Mapping):
            found = type(self.overrides).__name__
            raise UserError(
                f"{self.where}overrides", found=found, expected="values by id of the bundle's configuration"
            )
        find_policy(self.policy)

    @property
    def exchange(self) -> Policy:
        """The policy itself."""
        return find_policy(self.policy)

    def site_overrides(self) -> dict[str, Any]:
        """Return the values that every site sets in the bundle's configuration."""
        # A schedule over the bundle's `epochs` spans the run, not the round.
        return {"epochs": self.rounds * self.local_epochs, "seed": self.seed, **self.overrides}


def run_settings(settings: RunSettings) -> dict[str, Any]:
    """Return the settings of a run alone, by name, from a subclass that holds more."""
    return {item.name: getattr(settings, item.name) for item in fields(RunSettings)}
