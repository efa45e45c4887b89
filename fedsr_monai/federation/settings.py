"""The settings that define a run, in one place: the sites' jobs, a job for NVIDIA FLARE and `run.json` are made from them."""

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
    """Describe a run in plain values, which travel as JSON; none of them is a path or is executed by itself.

    Attributes:
        rounds: communication rounds in total.
        policy: what is exchanged, a key of `fedsr_monai.federation.policies.POLICIES`.
        local_epochs: epochs that a site trains in each round.
        seed: seed of all random numbers.
        weighting: weights of the sites in the aggregation, by number of `images` or `uniform`.
        aggregation: the server's rule, a key of `fedsr_monai.federation.aggregation.RULES`.
        min_sites: the fewest acceptable results that complete a round.
        overrides: values for ids of the bundle's configuration.
        baseline: a method that takes the place of FedSR: a file in the bundle's `configs/baselines/`, without its extension.

    Raises:
        UserError: a value is not what it must be.
    """

    where: ClassVar[str] = ""  # what stands before the name of a setting in an error message

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
        """The `Policy` object that `policy` names."""
        return find_policy(self.policy)

    def site_overrides(self) -> dict[str, Any]:
        """Return the values that every site sets in the bundle's configuration."""
        # A learning rate schedule over the bundle's `epochs` thus spans the run, not the round.
        return {"epochs": self.rounds * self.local_epochs, "seed": self.seed, **self.overrides}


def run_settings(settings: RunSettings) -> dict[str, Any]:
    """Return only the fields of `RunSettings`, by name; a subclass may have more."""
    return {item.name: getattr(settings, item.name) for item in fields(RunSettings)}
