"""The loss search of the personalised phase: the lambdas of eq. 11 and 12 as upper-level variables of a bilevel
problem.

Lower level: each head learns on one half of the site's scans, by the joint trainer's steps, under the current lambdas.
Upper level: the lambdas are moved so as to lower the loss on the other half after such a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from monai.engines import Trainer
from torch import nn

from fedsr_monai.engines.joint import Drawn, JointTrainer
from fedsr_monai.engines.objectives import (
    REGISTRATION_WEIGHTS,
    SEGMENTATION_WEIGHTS,
    Target,
    registration_losses,
    soft_dice,
    weighted,
)
from fedsr_monai.errors import UserError
from fedsr_monai.losses import dice_cross_entropy
from fedsr_monai.networks import Registration
from fedsr_monai.networks.fedsr_net import pad_to_stride
from fedsr_monai.networks.label_fractions import label_fractions, predicted_fractions
from fedsr_monai.spatial.warping import warp

Item = TypeVar("Item")


def halves(items: Sequence[Item]) -> tuple[list[Item], list[Item]]:
    """Split scans alternately into those that the heads learn on and those held out for the lambdas.

    Raises:
        UserError: there are fewer than two scans.
    """
    if len(items) < 2:
        raise UserError(
            "loss search",
            found=f"{len(items)} training scans",
            expected="at least 2 (one is held out)",
            fix="leave the search out",
        )
    return list(items[::2]), list(items[1::2])


class Lambdas(nn.Module):
    """The loss weights of one head, parametrised by their logarithms as `total * softmax(logs)`.

    Their sum is constant: the heads learn by Adam, which is blind to the scale of a loss, so that only the ratios of the
    lambdas can be searched for. A weight of 0 is left out, and stays 0.

    Args:
        weights: initial values.
        limit: largest factor by which `clamp` lets a lambda leave its initial value, before the sum is restored.
    """

    def __init__(self, weights: Mapping[str, float], limit: float = math.inf) -> None:
        super().__init__()
        self.total = sum(weights.values())
        initial = {name: math.log(weight) for name, weight in weights.items() if weight > 0}
        self.bounds = {name: (log - math.log(limit), log + math.log(limit)) for name, log in initial.items()}
        self.logs = nn.ParameterDict({name: nn.Parameter(torch.tensor(log)) for name, log in initial.items()})

    def forward(self) -> dict[str, torch.Tensor]:
        """Return the lambdas by name, differentiable."""
        ratios = torch.stack(list(self.logs.values())).softmax(dim=0)
        return {name: self.total * ratio for name, ratio in zip(self.logs, ratios)}

    @torch.no_grad()
    def clamp(self) -> None:
        """Keep every lambda within the limit."""
        for name, log in self.logs.items():
            log.clamp_(*self.bounds[name])


class LossSearch:
    """The upper level: the lambdas of both heads, and the Adam optimiser of their logarithms. Its state is saved
    together with that of the heads.

    Args:
        registration_weights, segmentation_weights: initial lambdas, which override the defaults of `objectives`.
        lr: learning rate of the logarithms: about the relative change of a lambda per step.
        limit: see `Lambdas`. A single unrolled step is short-sighted: terms that pay off later (smoothness) lose weight
            to those that pay off at once, and this bounds how much they lose.
    """

    def __init__(
        self,
        registration_weights: Mapping[str, float] | None = None,
        segmentation_weights: Mapping[str, float] | None = None,
        lr: float = 0.02,
        limit: float = 3.0,
    ) -> None:
        self.lambdas = nn.ModuleDict(
            {
                "registration": Lambdas(REGISTRATION_WEIGHTS | dict(registration_weights or {}), limit),
                "segmentation": Lambdas(SEGMENTATION_WEIGHTS | dict(segmentation_weights or {}), limit),
            }
        )
        self.optimizer = torch.optim.Adam(self.lambdas.parameters(), lr=lr)

    def weights(self, head: str) -> dict[str, float]:
        """Return the lambdas of a head as numbers."""
        return {name: float(value.detach()) for name, value in self.lambdas[head]().items()}

    def step(self, slope: torch.Tensor) -> None:
        """Move the lambdas down the gradient of `slope`, a differentiable function of them."""
        self.optimizer.zero_grad()
        slope.backward()
        self.optimizer.step()
        for lambdas in self.lambdas.values():
            lambdas.clamp()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of lambdas and optimiser."""
        return {"lambdas": self.lambdas.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of lambdas and optimiser."""
        self.lambdas.load_state_dict(state["lambdas"])
        self.optimizer.load_state_dict(state["optimizer"])


def coupling(upper: torch.Tensor, lower: torch.Tensor, output: torch.Tensor, eps: float = 1e-8) -> torch.Tensor:
    """Return the coefficient that couples the upper loss F to the lower loss g through `output` s: <dF/ds, dg/ds> /
    (<dg/ds, dg/ds> + eps).

    F - coupling * g is the upper loss including the lower level's response (after Bi-JROS, Fan et al., CVPR 2024). Its
    gradient is the implicit gradient F_w - F_s g_ss^-1 g_sw, with the Hessian g_ss replaced by the outer product of g_s
    with itself. This product has rank one and is not the Hessian, so it gives a direction to try, without a promise of
    convergence.
    """
    (of_upper,) = torch.autograd.grad(upper, output, retain_graph=True)
    (of_lower,) = torch.autograd.grad(lower, output, retain_graph=True)
    return (of_upper * of_lower).sum() / (of_lower.square().sum() + eps)


class LossSearchTrainer(JointTrainer):
    """A `JointTrainer` that searches for the lambdas while the heads learn; encoder and SA features are best frozen.

    Every `search_interval` iterations, after the step theta' = theta - P * gradient of sum_i lambda_i l_i(theta), the
    lambdas move down dU(theta')/dlambda_i = -<P * gradient of l_i(theta), gradient of U(theta')>, where P holds the step
    size of the head's optimiser for each weight. This is the hypergradient of one unrolled step, with the optimiser's
    momenta treated as constants.

    The upper objective U is a loss at fixed `reference` lambdas, so no lambda can lower it by being small. It is computed
    on a held-out scan and a newly drawn, exactly labelled atlas, and sums three terms: Dice and cross-entropy of the
    segmentation on the drawn atlas; eq. 11 for the registration to the drawn atlas, with its exact labels; and eq. 11 for
    the registration to the scan, in which the Dice of warped and predicted labels moves both heads. Smoothness is part of
    U because a field that folds raises overlap and similarity on any scan.

    `engine.state.output` gains `lambda/<head>/<loss>` and, if U was computed, `held_out`.

    Args:
        args, kwargs: arguments of `JointTrainer`, whose loss weights come from `search`.
        search: the lambdas.
        held_out: data set of the held-out scans: items with `image` [1, D, H, W] and, if a person corrected one,
            `label`.
        search_interval: iterations between two moves of the lambdas.
        search_start: iterations before the first move; until then Adam's step sizes rest on only a few gradients.
        reference: lambdas of U by head, which override the defaults of `objectives`.
        coupled: whether the registration step on predicted labels takes the segmentation's response into account
            (`coupling`).
    """

    def __init__(
        self,
        *args: Any,
        search: LossSearch,
        held_out: Sequence[Mapping[str, torch.Tensor]],
        search_interval: int = 4,
        search_start: int = 20,
        reference: Mapping[str, Mapping[str, float]] | None = None,
        coupled: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.search, self.held_out, self.coupled = search, held_out, coupled
        self.search_interval, self.search_start = search_interval, search_start
        given = reference or {}
        self.reference = {
            "registration": REGISTRATION_WEIGHTS | dict(given.get("registration", {})),
            "segmentation": SEGMENTATION_WEIGHTS | dict(given.get("segmentation", {})),
        }
        search.lambdas.to(self.state.device)
        self.weights["registration"]["coupling"] = 1.0
        self._gradients: dict[str, dict[str, list[torch.Tensor | None]]] = {}

    def _iteration(self, engine: Trainer, batchdata: Mapping[str, torch.Tensor]) -> dict[str, float]:
        self._gradients = {}
        lambdas = {head: self.search.weights(head) for head in self.heads}
        for head in lambdas:
            self.weights[head] |= lambdas[head]
        report = super()._iteration(engine, batchdata)
        if self._gradients:
            report["held_out"] = self._move_lambdas()
        return report | {f"lambda/{head}/{name}": value for head in lambdas for name, value in lambdas[head].items()}

    def _descend(self, report: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        if self.state.iteration > self.search_start and self.state.iteration % self.search_interval == 0:
            for head, losses in report.items():
                names = [name for name in self.search.lambdas[head].logs if name in losses]
                self._gradients[head] = {name: self._gradient(losses[name], head) for name in names}
        super()._descend(report)

    def _registration_losses(self, found: Registration, target: Target, drawn: Drawn) -> dict[str, torch.Tensor]:
        if not (self.coupled and target.predicted):
            return super()._registration_losses(found, target, drawn)
        target = replace(target, fractions=target.fractions.requires_grad_())
        losses = super()._registration_losses(found, target, drawn)
        # eq. 12 on what registration and segmentation share: label fractions at half resolution. The warped fractions
        # are differentiable too.
        warped = warp(drawn.atlas_fractions.expand_as(target.fractions), found.ddf)
        lower = soft_dice(target.fractions, warped) - (warped * (target.fractions + 1e-6).log()).sum(dim=1).mean()
        response = coupling(weighted(losses, self.weights["registration"]), lower, target.fractions)
        return losses | {"coupling": -response.detach() * lower}

    # -- the upper level
    # ------------------------------------------------------------------------------------------------------

    def _parameters(self, head: str) -> list[nn.Parameter]:
        return [parameter for parameter in getattr(self.network, head).parameters() if parameter.requires_grad]

    def _gradient(self, loss: torch.Tensor, head: str) -> list[torch.Tensor | None]:
        return list(torch.autograd.grad(loss, self._parameters(head), retain_graph=True, allow_unused=True))

    def _move_lambdas(self) -> float:
        """Take one step down the hypergradient, and return U."""
        objective = self.held_out_objective()
        slope = torch.zeros((), device=self.state.device)
        for head, by_name in self._gradients.items():
            size = step_sizes(self.optimizers[head])
            upper = [
                u if u is None else u * size(p) for p, u in zip(self._parameters(head), self._gradient(objective, head))
            ]
            lambdas = self.search.lambdas[head]()
            for name, gradients in by_name.items():
                slope = slope - lambdas[name] * sum(
                    (g * u).sum() for g, u in zip(gradients, upper) if g is not None and u is not None
                )
        self.search.step(slope)
        self._gradients = {}
        return float(objective.detach())

    def held_out_objective(self) -> torch.Tensor:
        """Return U (see the class) on a random held-out scan and a random atlas, differentiable with respect to the
        heads.
        """
        network = self.network
        item = self.held_out[int(torch.randint(len(self.held_out), ()))]
        scan = pad_to_stride(item["image"][None].to(self.state.device).as_subclass(torch.Tensor))
        drawn = self._draw()
        with self._autocast():
            fixed, moving = self._encode(torch.cat([scan, drawn.image]), drawn)
            logits, _ = network.segment(fixed)
        fractions = predicted_fractions(logits)
        segmented, label, of_scan = logits[1:], drawn.label, fractions[:1]
        if "label" in item:
            scan_label = pad_to_stride(item["label"][None].to(scan.device).as_subclass(torch.Tensor))
            segmented, label = logits, torch.cat([scan_label.to(label.dtype), label])
            of_scan = label_fractions(scan_label, network.num_classes)
        total = self.reference["segmentation"]["exact"] * dice_cross_entropy(segmented, label)
        if "registration" in self.heads:
            targets = [Target(scan, of_scan), Target(drawn.image, label_fractions(drawn.label, network.num_classes))]
            for number, target in enumerate(targets):
                one = slice(number, number + 1)
                found = self._align([f[one] for f in fixed], moving, fractions[one], drawn)
                losses = registration_losses(network, found, target, drawn.atlas_fractions, None)
                total = total + weighted(losses, self.reference["registration"])
        return total


def step_sizes(optimizer: torch.optim.Optimizer) -> Callable[[torch.Tensor], torch.Tensor | float]:
    """Return a function that gives a parameter's step per unit of gradient: Adam's lr / (sqrt(v) + eps), or lr if there
    is no v yet.
    """
    rates = {id(p): (group["lr"], group.get("eps", 0.0)) for group in optimizer.param_groups for p in group["params"]}

    def size(parameter: torch.Tensor) -> torch.Tensor | float:
        lr, eps = rates[id(parameter)]
        second = optimizer.state.get(parameter, {}).get("exp_avg_sq")
        return lr if second is None else lr / (second.sqrt() + eps)

    return size
