"""`fedsr pretrain`: train the weights that ship."""

from __future__ import annotations


def pretrain(
    out: str,
    segmentation_epochs: int = 60,
    registration_epochs: int = 20,
    preset: str = "small",
    spacing: float = 2.0,
    training: int = 24,
    test: int = 6,
    labelled: int = 2000,
    seed: int = 7,
) -> None:
    """Train weights like those that ship: simulate sites of every kind, train both heads, measure, write OUT/model.pt.

    Takes hours on two CPU cores. The same command resumes a killed run.

    Args:
        out: folder for the sites, the two stages, the evaluation and model.pt
        segmentation_epochs: epochs of 150 steps that train encoder and segmentation head
        registration_epochs: epochs of 150 steps that train the registration head
        preset: small or full
        spacing: voxel size in mm: 2.5, 2 or 1.5
        training: number of simulated scans per site to train on
        test: number of simulated scans per site to measure on
        labelled: number of simulated labelled scans to train on, each from a different hospital
        seed: seed of all random numbers

    Example:
        fedsr pretrain weights
    """
    from fedsr_monai.pretraining import pretrain as run

    epochs = {"segmentation": segmentation_epochs, "registration": registration_epochs}
    print(run(out, epochs, preset, spacing, training=training, test=test, labelled=labelled, seed=seed))
