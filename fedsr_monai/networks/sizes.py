"""Sizes of structures: a network that draws them too large or too small on the labelled atlas does so on other scans too, and adjusting the
biases of its last convolution is enough to correct this.

It is done only for deep grey matter, whose borders an image hardly shows. Where borders are visible, as around the ventricles, the error is one
of partial volume, and that on the narrow ventricles of one atlas says nothing about wide ones: matching all structures takes the lateral ventricles
of old people from a Dice of 0.86 to 0.83 (benchmarks/README.md).
"""

from __future__ import annotations

import torch

from fedsr_monai.labels.agreement import agreement, structure_dice
from fedsr_monai.networks.fedsr_net import FedSRNet

DEEP_GREY_MATTER = (6, 7, 8, 9, 11, 12)  # thalamus, caudate, putamen, pallidum, hippocampus, amygdala
LEAST_DICE = 0.5  # on the atlas; a structure with less overlap has not been learnt, which no bias can correct
LARGEST = 2.3  # largest bias in either direction, which changes the odds tenfold
LARGEST_LOSS = 0.005  # of Dice on the atlas, in return for right sizes; a well-fitted head may lose a hundredth of that
STEPS, DAMPING = 60, 0.5
BIAS = "segmentation.logits.bias"  # key of the biases that are moved


def size_factors(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Return each class's number of voxels according to logits [K, D, H, W], divided by its number in the labels [D, H, W].

    The factor is infinity if only the logits have a class, and nan if neither has it.
    """
    found = torch.bincount(logits.argmax(dim=0).flatten(), minlength=len(logits))
    return found / torch.bincount(label.long().flatten(), minlength=len(logits))


def size_biases(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Return what to add to the logits of each class, [K], so that each structure of deep grey matter has as many voxels as in the labels.

    It is found by iteration. A few percent may remain if a structure is small, or more if the bias reaches `LARGEST`. All other classes keep their
    logits, and so does a structure whose Dice is below `LEAST_DICE`.

    Args:
        logits: logits of a labelled image, [K, D, H, W].
        label: its label ids, [D, H, W].
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
    """Adjust the biases of the segmentation head so that it draws the deep grey matter of the atlas in the sizes of the atlas' labels.

    This is a calibration on the one labelled scan that a site has. It uses no other labels and changes no other weights. What it gains is in
    benchmarks/README.md.

    Args:
        network: the network, with its atlas.
        share: fraction of the computed biases that is added.

    Returns:
        What was added to the biases, [K]. If the Dice on the atlas would fall by more than `LARGEST_LOSS`, these are zeros and nothing is changed.
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
