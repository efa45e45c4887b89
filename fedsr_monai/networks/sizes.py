"""Sizes of structures: a network that draws them too large or too small on the labelled atlas does so on other scans too, and the biases of its
last convolution are enough to mend it.

It is done for deep grey matter alone, whose borders an image hardly shows. Where it shows them, as around the ventricles, the error is one of
partial volume, and that on the narrow ventricles of one atlas says nothing about wide ones: matching all structures takes the lateral ventricles
of old people from a Dice of 0.86 to 0.83 (benchmarks/README.md).
"""

from __future__ import annotations

import torch

from fedsr_monai.labels.agreement import agreement, structure_dice
from fedsr_monai.networks.fedsr_net import FedSRNet

DEEP_GREY_MATTER = (6, 7, 8, 9, 11, 12)  # thalamus, caudate, putamen, pallidum, hippocampus, amygdala
LEAST_DICE = 0.5  # on the atlas; a structure that overlaps less has not been learnt, which no bias mends
LARGEST = 2.3  # bias either way: odds that change tenfold
LARGEST_LOSS = 0.005  # of Dice on the atlas, for right sizes: a well-fitted head may lose a hundredth of that
STEPS, DAMPING = 60, 0.5
BIAS = "segmentation.logits.bias"  # key of what is moved


def size_factors(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Return the number of voxels that each class has by logits [K, D, H, W], divided by that of its labels [D, H, W].

    Infinity where only the logits have a class, nan where neither has it.
    """
    found = torch.bincount(logits.argmax(dim=0).flatten(), minlength=len(logits))
    return found / torch.bincount(label.long().flatten(), minlength=len(logits))


def size_biases(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Return what to add to the logits of each class so that deep grey matter takes as many voxels as it has labels, [K].

    Found by iteration, to a few percent where a structure is small or the bias ends at `LARGEST`. All other classes keep their logits, and so does
    a structure whose Dice is below `LEAST_DICE`.

    Args:
        logits: [K, D, H, W] of a labelled image.
        label: its ids [D, H, W].
    """
    dice = structure_dice(logits.argmax(dim=0).cpu().numpy(), label.cpu().numpy())
    learnt = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    learnt[[k for k in DEEP_GREY_MATTER if dice[k - 1] >= LEAST_DICE]] = True
    biases = torch.zeros(len(logits), device=logits.device)
    for _ in range(STEPS):
        factors = size_factors(logits + biases[:, None, None, None], label).clamp_min(0.1)
        biases = (biases - DAMPING * torch.where(learnt, factors.log(), 0.0)).clamp(-LARGEST, LARGEST)
    return biases


@torch.no_grad()
def match_sizes(network: FedSRNet, share: float = 1.0) -> torch.Tensor:
    """Move the biases of the segmentation head so that the deep grey matter of the atlas, labelled by the network, has the sizes that it has in the atlas' labels.

    It is a calibration on the one labelled scan that a site has: no other labels take part, and no weight but these biases changes. What it gains is in
    benchmarks/README.md.

    Args:
        network: with its atlas.
        share: of the biases that this takes.

    Returns:
        What was added to the biases, [K]; zeros if the atlas lost more than `LARGEST_LOSS` of its Dice by them, and nothing was changed.
    """
    training = network.training
    network.eval()
    logits, label = network(network.atlas_image)[0], network.atlas_label[0, 0]
    biases = share * size_biases(logits, label)
    maps = [found.argmax(dim=0).cpu().numpy() for found in (logits, logits + biases[:, None, None, None])]
    before, after = (agreement(found, label.cpu().numpy()) for found in maps)
    if not after >= before - LARGEST_LOSS:
        biases = torch.zeros_like(biases)
    network.segmentation.logits.bias += biases
    network.train(training)
    return biases
