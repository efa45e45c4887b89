"""The Ignite trainer of the joint task: Algorithm 1's local training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from ignite.engine import Events
from ignite.metrics import Metric
from monai.engines import Trainer
from torch import nn

from fedsr_monai.device import keep_freed_memory
from fedsr_monai.engines.objectives import (
    REGISTRATION_WEIGHTS,
    SEGMENTATION_WEIGHTS,
    Labelled,
    Target,
    general_loss,
    registration_losses,
    segmentation_losses,
    weighted,
)
from fedsr_monai.errors import UserError
from fedsr_monai.losses import Balanced, ParzenMI
from fedsr_monai.networks import FedSRNet, Registration
from fedsr_monai.networks.fedsr_net import STRIDE, pad_to_stride
from fedsr_monai.networks.label_fractions import average_fractions, label_fractions, predicted_fractions
from fedsr_monai.networks.sa import HEADS, profile
from fedsr_monai.spatial.warping import warp
from fedsr_monai.synthesis import RandomAtlas
from fedsr_monai.synthesis.draws import chance


@dataclass(frozen=True)
class Drawn:
    """The exactly labelled image of a step, and the atlas that it was drawn from, all padded to the encoder's stride.

    Attributes:
        image: [1, 1, D, H, W] in [0, 1].
        label: its label ids [1, 1, D, H, W].
        atlas, atlas_label: image and label ids of the site's atlas.
        atlas_fractions: label fractions of the atlas, [1, classes, D/2, H/2, W/2].
    """

    image: torch.Tensor
    label: torch.Tensor
    atlas: torch.Tensor
    atlas_label: torch.Tensor
    atlas_fractions: torch.Tensor


@torch.no_grad()
def sa_entropy(network: FedSRNet) -> float:
    """Return the mean entropy of the SA vectors in nats: `ParzenMI` of each with itself, the upper limit of that Phi."""
    estimator = ParzenMI()
    vectors = [profile(vector) for vector in network.sa.buffers()]
    return sum(float(estimator(vector[None], vector)) for vector in vectors) / len(vectors)


class JointTrainer(Trainer):
    """Train both heads on a site's unlabelled scans and its one labelled atlas.

    A batch holds `image` [B, 1, D, H, W] on the atlas' grid, and `label` if a person has corrected one (it is then used
    as an exact label). Each iteration takes the registration step (eq. 11) and the segmentation step (eq. 12); `fused`
    computes both from one forward pass. After each step, the SA features move by eq. 7. `engine.state.output` is a dict
    of floats, one per loss.

    In the first step of each epoch that has mutual information, and regularly with a `Balanced` estimator, the output
    also has `phi_gradient` and `sa_entropy`, which tell whether the mutual information still has an effect.

    Args:
        device, max_epochs, train_data_loader, train_handlers, key_train_metric: as in
            `monai.engines.SupervisedTrainer`.
        epoch_length: iterations per epoch. Each epoch begins a new pass over the data, which should be shuffled if an
            epoch is shorter than a pass.
        network: a FedSRNet with its atlas set; SA features are initialised from the atlas if they are still zero.
        optimizers: from `head_optimizers`.
        random_atlas: draws exactly labelled images from the atlas; if None, the atlas itself is the only exactly
            labelled image.
        mutual_information: estimator of Phi, or None (the ablation of Table IV).
        registration_weights, segmentation_weights: lambdas by loss name, which override the defaults of `objectives`.
        heads: the heads that are trained; segmentation alone (at a site that corrects labels) needs no registration
            pass.
        fused: use one forward pass for both steps (default), or take the two steps of Algorithm 1 one after the other.
        exact_registration: fraction of iterations whose registration target is the random atlas with its exact labels,
            not the scan.
        both_targets: register to both the scan and the random atlas in every iteration; `exact_registration` is then
            ignored.
        sa_alpha: alpha of eq. 7; 0 leaves the SA features unchanged (the personalised phase).
        sa_scans_only: use only the site's scans for the mutual information and for the SA features; False uses the
            drawn images too.
        heads_first: fraction of a run's iterations in which the heads learn with the encoder frozen, before the encoder
            learns with the heads frozen (FedRep); 0 trains both together.
        atlases: image and labels of the atlas by site, if the scans come from several sites. Each scan, which needs a
            `name` "<site>/<scan>", is then registered with the atlas of its site.
        amp: run convolutions in bfloat16 (autocast on the network's device).
        clip: largest norm of each optimiser's gradient.
        kwargs: as in `monai.engines.Trainer`.

    Raises:
        UserError: a gradient became NaN or infinite. The optimiser with this gradient has not taken its step.
    """

    mixes_sites = False  # whether a batch may hold scans of several sites

    def __init__(
        self,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: Iterable,
        network: FedSRNet,
        optimizers: Mapping[str, torch.optim.Optimizer],
        random_atlas: RandomAtlas | None = None,
        mutual_information: nn.Module | None = None,
        registration_weights: Mapping[str, float] | None = None,
        segmentation_weights: Mapping[str, float] | None = None,
        heads: Iterable[str] = HEADS,
        fused: bool = True,
        exact_registration: float = 0.5,
        both_targets: bool = False,
        sa_alpha: float = 0.1,
        sa_scans_only: bool = True,
        heads_first: float = 0.0,
        atlases: Mapping[str, tuple[torch.Tensor, torch.Tensor]] | None = None,
        amp: bool = True,
        clip: float = 5.0,
        train_handlers: Iterable | None = None,
        key_train_metric: dict[str, Metric] | None = None,
        epoch_length: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            device=torch.device(device),
            max_epochs=max_epochs,
            data_loader=train_data_loader,
            epoch_length=epoch_length,
            handlers=train_handlers,
            key_metric=key_train_metric,
            **kwargs,
        )
        if self.state.device.type == "cpu":
            keep_freed_memory()
        self.network, self.optimizers, self.random_atlas = network.to(device), dict(optimizers), random_atlas
        self.mutual_information = mutual_information
        self.weights = {
            "registration": REGISTRATION_WEIGHTS | dict(registration_weights or {}),
            "segmentation": SEGMENTATION_WEIGHTS | dict(segmentation_weights or {}),
        }
        self.heads = tuple(head for head in HEADS if head in heads)
        self.fused, self.exact_registration, self.sa_alpha, self.clip = fused, exact_registration, sa_alpha, clip
        self.both_targets, self.sa_scans_only, self.heads_first = both_targets, sa_scans_only, heads_first
        self.atlases, self._atlas_of = dict(atlases or {}), ""
        self._first_iteration = 0
        self._learning = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
        self._measuring, self._measured = False, dict[str, float]()  # see _descend
        # Not the base class' `amp`, which creates a gradient scaler for CUDA that bfloat16 does not need.
        self.bfloat16 = amp
        # The registration of the latest scan, on which the next random atlas may build; half-resolution voxels.
        self._last_ddf: torch.Tensor | None = None
        if not any(vector.any() for vector in network.sa.buffers()):
            network.initialise_sa()
        self.add_event_handler(Events.STARTED, self._begin_run)
        self.add_event_handler(Events.EPOCH_STARTED, self._begin_epoch)

    def _begin_run(self, engine: Trainer) -> None:
        self._first_iteration = self.state.iteration

    def _begin_epoch(self, engine: Trainer) -> None:
        # An epoch begins with a new pass over the data, so that it is the same whether it follows another epoch or a
        # restart of the process.
        self._last_ddf = None
        self._measuring = True
        self.set_data(self.state.dataloader)

    def _iteration(self, engine: Trainer, batchdata: Mapping[str, torch.Tensor]) -> dict[str, float]:
        self.network.train()
        self._begin_step(batchdata)
        if (
            isinstance(self.mutual_information, Balanced)
            and self.state.iteration % self.mutual_information.interval == 0
        ):
            self._measuring = True
        scan = pad_to_stride(batchdata["image"].to(self.state.device).as_subclass(torch.Tensor))
        label = batchdata["label"].to(scan.device).as_subclass(torch.Tensor) if "label" in batchdata else None
        step = self._fused_step if self.fused and len(self.heads) == 2 else self._alternating_step
        self._measured = {}
        report = step(scan, None if label is None else pad_to_stride(label))
        if self._measured:
            report |= self._measured | {"sa_entropy": sa_entropy(self.network)}
            self._measuring = False
        return report

    def _begin_step(self, batchdata: Mapping[str, Any]) -> None:
        """Take the atlas of the scan's site, and freeze encoder or heads if they take turns (`heads_first`)."""
        if self.atlases:
            self._take_atlas(batchdata["name"])
        if self.heads_first and any(name.startswith("encoder.") for name, _ in self._learning):
            total = self.state.max_epochs * self.state.epoch_length - self._first_iteration
            heads_learn = self.state.iteration - self._first_iteration <= self.heads_first * total
            for name, parameter in self._learning:
                parameter.requires_grad_((not name.startswith("encoder.")) == heads_learn)

    def _take_atlas(self, names: Sequence[str]) -> None:
        """Give the network the atlas of the site that the (first) scan of the batch comes from."""
        site, *others = [name.split("/")[0] for name in names]
        if not self.mixes_sites and set(others) - {site}:
            found = f"scans of {', '.join(sorted({site, *others}))}"
            raise UserError("batch", found=found, expected="scans of one site per batch", fix="set batch_size to 1")
        if site != self._atlas_of:
            self.network.set_atlas(*self.atlases[site])
            self._atlas_of, self._last_ddf = site, None

    # -- the two ways to take a step
    # ------------------------------------------------------------------------------------------

    def _fused_step(self, scan: torch.Tensor, label: torch.Tensor | None) -> dict[str, float]:
        drawn = self._draw()
        on = self._registered()
        if on == "drawn" and label is None:
            scan = scan[:0]  # neither a target nor labelled: no loss would look at it
        scans = len(scan)
        items = {"scan": slice(0, scans), "drawn": slice(scans, None), "both": slice(0, None)}[on]
        with self._autocast():
            fixed, moving = self._encode(torch.cat([scan, drawn.image]), drawn)
            logits, pooled = self.network.segment(fixed)
        # Computed once, for both the registration's target and the segmentation's losses.
        probability = logits.detach().softmax(dim=1)
        fractions = average_fractions(probability[items])
        found = self._counted(self._align([f[items] for f in fixed], moving, fractions, drawn), on, scans)
        pooled = self._of_scans(pooled, scans)
        target = self._target(on, scan, label, drawn, fractions)
        of_scans = None if on == "drawn" else found.full_ddf[:scans]
        labelled = self._labelled(logits, probability, scans, label, drawn, of_scans)
        report = {
            "registration": self._registration_losses(found, target, drawn),
            "segmentation": segmentation_losses(self.network, labelled, pooled, self.mutual_information),
        }
        report["segmentation"] |= self._general(fixed, scans, label, drawn, of_scans)
        self._descend(report)
        self._update_sa(found.pooled, pooled)
        self._last_ddf = None if on == "drawn" else found.ddf.detach()[:1]
        return self._report(report)

    def _alternating_step(self, scan: torch.Tensor, label: torch.Tensor | None) -> dict[str, float]:
        drawn = self._draw()
        on = self._registered()
        report: dict[str, dict[str, torch.Tensor]] = {}
        found = of_scans = None
        if "registration" in self.heads:
            fixed = {"scan": [scan], "drawn": [drawn.image], "both": [scan, drawn.image]}[on]
            with self._autocast():
                features, moving = self._encode(torch.cat(fixed), drawn)
                with torch.no_grad():
                    logits, _ = self.network.segment(features)
            fractions = predicted_fractions(logits)
            found = self._counted(self._align(features, moving, fractions, drawn), on, len(scan))
            of_scans = None if on == "drawn" else found.full_ddf[: len(scan)]
            target = self._target(on, scan, label, drawn, fractions)
            report["registration"] = self._registration_losses(found, target, drawn)
            self._descend({"registration": report["registration"]})
            self._update_sa(found.pooled, [])
        if "segmentation" in self.heads:
            if label is None and of_scans is None:
                scan = scan[:0]  # it has no labels
            with self._autocast():
                features = self.network.encoder(torch.cat([scan, drawn.image]))
                logits, pooled = self.network.segment(features)
            pooled = self._of_scans(pooled, len(scan))
            probability = logits.detach().softmax(dim=1)
            labelled = self._labelled(logits, probability, len(scan), label, drawn, of_scans)
            report["segmentation"] = segmentation_losses(self.network, labelled, pooled, self.mutual_information)
            report["segmentation"] |= self._general(features, len(scan), label, drawn, of_scans)
            self._descend({"segmentation": report["segmentation"]})
            self._update_sa([], pooled)
        self._last_ddf = None if of_scans is None or found is None else found.ddf.detach()[:1]
        return self._report(report)

    # -- parts of a step
    # ------------------------------------------------------------------------------------------------------

    def _autocast(self) -> torch.autocast:
        # On grids of up to 32 voxels the coarsest features are at most two voxels wide. There, oneDNN's bfloat16 gradient
        # for the weights of a 3-D convolution reads memory that it never wrote (torch 2.13 on AVX512-BF16): the numbers
        # differ each time, and are now and then NaN.
        broken = self.state.device.type == "cpu" and min(self.network.atlas_image.shape[2:]) <= 2 * STRIDE
        return torch.autocast(self.state.device.type, dtype=torch.bfloat16, enabled=self.bfloat16 and not broken)

    def _draw(self) -> Drawn:
        """Draw an exactly labelled image: a random atlas, or the atlas itself if random atlases are off."""
        atlas, atlas_label = pad_to_stride(self.network.atlas_image), pad_to_stride(self.network.atlas_label)
        fractions = self.network.atlas_fractions()
        if self.random_atlas is None:
            return Drawn(atlas, atlas_label, atlas, atlas_label, fractions)
        return Drawn(*self.random_atlas(atlas, atlas_label, self._last_ddf), atlas, atlas_label, fractions)

    def _registered(self) -> str:
        """Return what the atlas is registered to in this step: the "scan", the "drawn" image, or "both"."""
        if "registration" not in self.heads or self.random_atlas is None:
            return "scan"
        if self.both_targets:
            return "both"
        return "drawn" if chance(self.exact_registration) else "scan"

    def _of_scans(self, pooled: list[torch.Tensor], scans: int) -> list[torch.Tensor]:
        """Return the pooled f_d that are used for mutual information and SA features, from a batch that begins with
        `scans` scans; nothing if no image of the batch is used.
        """
        if not self.sa_scans_only:
            return pooled
        return [feature[:scans] for feature in pooled] if scans else []

    def _counted(self, found: Registration, on: str, scans: int) -> Registration:
        return replace(found, pooled=self._of_scans(found.pooled, 0 if on == "drawn" else scans))

    def _encode(self, images: torch.Tensor, drawn: Drawn) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return encoder features of images and of the atlas, from one batch (eq. 1)."""
        # Split, not sliced, because the gradient of a slice is a whole batch of zeros that contains the slice.
        pairs = [f.split([len(images), 1]) for f in self.network.encoder(torch.cat([images, drawn.atlas]))]
        return [fixed for fixed, _ in pairs], [moving for _, moving in pairs]

    def _align(
        self, fixed: list[torch.Tensor], moving: list[torch.Tensor], fractions: torch.Tensor, drawn: Drawn
    ) -> Registration:
        with self._autocast():
            return self.network.align(fixed, moving, fractions, drawn.atlas_fractions)

    def _target(
        self, on: str, scan: torch.Tensor, label: torch.Tensor | None, drawn: Drawn, fractions: torch.Tensor
    ) -> Target:
        """Return the registration's target, with exact labels if there are any, else with predicted fractions, which
        take no gradient (eq. 10).
        """
        images, parts = [], []
        if on != "drawn":
            images.append(scan)
            predicted = fractions[: len(scan)].detach()
            parts.append(predicted if label is None else label_fractions(label, self.network.num_classes))
        if on != "scan":
            images.append(drawn.image)
            parts.append(label_fractions(drawn.label, self.network.num_classes))
        return Target(torch.cat(images), torch.cat(parts), predicted=on != "drawn" and label is None)

    def _labelled(
        self,
        logits: torch.Tensor,
        probability: torch.Tensor,
        scans: int,
        label: torch.Tensor | None,
        drawn: Drawn,
        ddf: torch.Tensor | None,
    ) -> dict[str, Labelled]:
        """Return the inputs of the segmentation loss by kind of labels, from the logits of the batch [scans, drawn],
        their softmax, and the displacement from the atlas to the scans.
        """
        if label is not None:
            return {"exact": Labelled(logits, torch.cat([label, drawn.label]), probability)}
        sizes = [scans, len(logits) - scans]
        (of_scans, of_drawn), (scans_probability, drawn_probability) = logits.split(sizes), probability.split(sizes)
        labelled = {"exact": Labelled(of_drawn, drawn.label, drawn_probability)}
        if ddf is not None and self.weights["segmentation"]["pseudo"]:
            # eq. 3 with nearest-neighbour sampling: an argmax over the 14 warped one-hot channels costs as much as the
            # encoder, and moves a border by less than half a voxel.
            atlas_label = drawn.atlas_label.expand(scans, -1, -1, -1, -1)
            pseudo = warp(atlas_label, ddf.detach(), mode="nearest")
            labelled["pseudo"] = Labelled(of_scans, pseudo, scans_probability)
        return labelled

    def _general(
        self,
        features: list[torch.Tensor],
        scans: int,
        label: torch.Tensor | None,
        drawn: Drawn,
        ddf: torch.Tensor | None,
    ) -> dict[str, torch.Tensor]:
        """Return the loss of the general branch (the segmentation without SCIE), or nothing if its weight is 0."""
        weights = self.weights["segmentation"]
        if not weights["general"]:
            return {}
        with self._autocast():
            logits, _ = self.network.segment(features, guided=False)
        labelled = self._labelled(logits, logits.detach().softmax(dim=1), scans, label, drawn, ddf)
        return {"general": general_loss(labelled, weights)}

    def _weights(self, head: str) -> dict[str, float]:
        """Return the lambdas of a head for this step."""
        weights = dict(self.weights[head])
        if isinstance(self.mutual_information, Balanced):
            weights["mutual_information"] *= self.mutual_information.scale(self.state.iteration)
        return weights

    def _registration_losses(self, found: Registration, target: Target, drawn: Drawn) -> dict[str, torch.Tensor]:
        return registration_losses(self.network, found, target, drawn.atlas_fractions, self.mutual_information)

    def _descend(self, report: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Take one step of each head in `report` down the weighted sum of its losses.

        If a measurement is due and there is mutual information, measure `phi_gradient`: the norm of its gradient as a
        fraction of the norm of the gradient of all other terms. This costs one more backward pass. It does not change
        this step, but with a `Balanced` estimator it changes the weight in later steps.
        """
        of_heads = {head: self._weights(head) for head in report}
        self.network.zero_grad(set_to_none=True)
        parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        name = "mutual_information"
        terms = [of_heads[head][name] * losses[name] for head, losses in report.items() if name in losses]
        phi = sum(terms) if self._measuring and terms else None
        of_phi = None
        if phi is not None and phi.requires_grad:
            of_phi = torch.autograd.grad(phi, parameters, retain_graph=True, materialize_grads=True)
        sum(weighted(losses, of_heads[head]) for head, losses in report.items()).backward()
        if of_phi is not None:
            others = [(0 if p.grad is None else p.grad) - gradient for p, gradient in zip(parameters, of_phi)]
            norms = [float(torch.stack([g.square().sum() for g in part]).sum().sqrt()) for part in (of_phi, others)]
            self._measured["phi_gradient"] = norms[0] / norms[1] if norms[1] else 0.0
            if isinstance(self.mutual_information, Balanced):
                self.mutual_information.measured(self._measured["phi_gradient"], self.state.iteration)
        for optimizer in (self.optimizers[head] for head in report):
            own = [p for group in optimizer.param_groups for p in group["params"]]
            if not bool(nn.utils.clip_grad_norm_(own, self.clip).isfinite()):
                raise UserError(
                    f"training, iteration {self.state.iteration}",
                    found="NaN or an infinite value in the gradient",
                    expected="finite numbers",
                    fix="lower learning_rate; the weights of the last complete epoch are kept",
                )
            optimizer.step()

    def _update_sa(self, of_registration: list[torch.Tensor], of_segmentation: list[torch.Tensor]) -> None:
        """Move the SA features towards the features that the heads pooled (eq. 7)."""
        for head, vectors in (("registration", of_registration), ("segmentation", of_segmentation)):
            if vectors and self.sa_alpha:
                self.network.sa.update(head, vectors, self.sa_alpha)

    def _report(self, parts: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, float]:
        report = {"loss": 0.0}
        for head, losses in parts.items():
            report[head] = float(weighted(losses, self._weights(head)).detach())
            report["loss"] += report[head]
            report |= {name: float(loss.detach()) for name, loss in losses.items() if name != "mutual_information"}
        information = [
            -float(losses["mutual_information"].detach()) for losses in parts.values() if "mutual_information" in losses
        ]
        if information:
            report["mutual_information"] = sum(information) / len(information)
        return report
