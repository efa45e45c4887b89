"""Test whether a network uses its site-aggregated (SA) features, by how its Dice changes, scan by scan, when they are replaced."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import LoadImage
from scipy import stats

from fedsr_monai.checks import check_choice
from fedsr_monai.errors import UserError
from fedsr_monai.evaluation.stages import COMPARED
from fedsr_monai.evaluation.tables import METRIC_COLUMNS, mean_dice_by_case, read_measures
from fedsr_monai.files import is_there
from fedsr_monai.networks import FedSRNet
from fedsr_monai.networks.fedsr_net import pad_to_stride
from fedsr_monai.networks.label_fractions import predicted_fractions
from fedsr_monai.networks.sa import HEADS, profile
from fedsr_monai.sites.site import Site
from fedsr_monai.spatial.reader import VolumeReader

LEARNED = "learned"
# Replacements of the SA features: their own channels in random order, zeros, their initial values (the pooled features
# of the site's atlas, computed by the network as it is), or the mean over the site's own training scans.
VARIANTS = (LEARNED, "permuted", "zero", "atlas", "site")


@dataclass(frozen=True)
class Effect:
    """The effect of a change of the SA features.

    Attributes:
        difference: difference of the mean Dice, changed minus learned.
        p: two-sided, paired t-test over the scans; nan with fewer than two.
        scans: number of scans.
    """

    difference: float
    p: float
    scans: int


@torch.no_grad()
def change_sa(network: FedSRNet, variant: str, site: Site, seed: int = 0) -> None:
    """Replace the SA features of a network that has its site's atlas; if they include a variance over scans, it is kept.

    Args:
        network: changed in place.
        variant: one of `VARIANTS`.
        site: the site, whose training scans are read for the variant `site`.
        seed: seed of the permutation.

    Raises:
        UserError: there is no such variant, or the site has no training scan.
    """
    check_choice("sa", variant, VARIANTS)
    kept = {name: vector.clone() for name, vector in network.sa.named_buffers()}
    generator = torch.Generator().manual_seed(seed)
    if variant == "atlas":
        network.initialise_sa()
    elif variant == "site":
        _set_to_scans(network, site)
    elif variant == "zero":
        for vector in network.sa.buffers():
            profile(vector).zero_()
    elif variant == "permuted":
        for vector in network.sa.buffers():
            values = profile(vector).view(1 if vector.ndim == 1 else 2, -1)  # of each channel: one number or two
            values.copy_(values[:, torch.randperm(values.shape[1], generator=generator).to(values.device)])
    for name, vector in network.sa.named_buffers():
        if vector.ndim == 2:
            vector[1].copy_(kept[name][1])


def _set_to_scans(network: FedSRNet, site: Site) -> None:
    if not site.training:
        raise UserError(site.root, found="no training scan", expected="one or more for sa=site", fix="add scans")
    load = LoadImage(VolumeReader(), ensure_channel_first=True)
    found: dict[str, list[list[torch.Tensor]]] = {head: [] for head in HEADS}
    moving = network.encoder(pad_to_stride(network.atlas_image))
    for item in site.training:
        scan = load(item["image"]).as_tensor().float()[None].to(network.atlas_image.device)
        fixed = network.encoder(pad_to_stride(scan))
        logits, pooled = network.segment(fixed)
        found["segmentation"].append(pooled)
        found["registration"].append(network.align(fixed, moving, predicted_fractions(logits)).pooled)
    for head, of_scans in found.items():
        for scale, of_scale in enumerate(zip(*of_scans)):
            profile(getattr(network.sa, head)[scale]).copy_(torch.cat(of_scale).float().mean(dim=0))


def effect(
    learned: Sequence[Sequence[Mapping[str, Any]]], changed: Sequence[Sequence[Mapping[str, Any]]], task: str
) -> Effect:
    """Compare evaluations with changed SA features to those with the learned ones, on the scans that both have.

    Args:
        learned: rows of metrics.csv, one list per network (the same run with several seeds, for example).
        changed: rows of the same networks with changed SA features.
        task: registration or segmentation.

    Returns:
        The effect; each scan counts once, with its mean over the networks.
    """
    differences: dict[tuple[str, str], list[float]] = {}
    for before, after in zip(learned, changed, strict=True):
        old, new = mean_dice_by_case(before, task), mean_dice_by_case(after, task)
        for case in new:
            if case in old:
                differences.setdefault(case, []).append(new[case] - old[case])
    by_scan = np.array([np.mean(values) for values in differences.values()])
    if len(by_scan) < 2:
        p = math.nan
    elif np.ptp(by_scan) == 0:
        p = 1.0 if by_scan[0] == 0 else 0.0  # the t-test divides by the spread
    else:
        p = float(stats.ttest_1samp(by_scan, 0).pvalue)
    return Effect(float(by_scan.mean()) if len(by_scan) else math.nan, p, len(by_scan))


def effect_lines(learned: str | os.PathLike, changed: str | os.PathLike, variant: str) -> list[str]:
    """Return one line per task on what a change of the SA features did, from two evaluation folders; none if the learned
    ones have not been measured.
    """
    tables = [Path(folder) / "metrics.csv" for folder in (learned, changed)]
    if not all(map(is_there, tables)):
        return []
    before, after = ([read_measures(table, METRIC_COLUMNS)] for table in tables)
    found = {task: effect(before, after, task) for task in COMPARED}
    return [
        f"SA features {variant}: {task} {of_task.difference:+.4f} mean Dice against the learned ones "
        f"(p = {of_task.p:.2g}, {of_task.scans} scans)"
        for task, of_task in found.items()
    ]
