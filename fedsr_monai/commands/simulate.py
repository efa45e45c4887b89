"""`fedsr simulate`: make simulated sites."""

from __future__ import annotations


def simulate(
    out: str,
    sites: int = 4,
    training: int = 8,
    validation: int = 2,
    test: int = 4,
    spacing: float = 2.0,
    shape: list[int] | None = None,
    seed: int = 0,
    unseen: bool = False,
    profiles: list[str] | None = None,
    processes: int = 2,
    anatomies: str | None = None,
    test_anatomies: str | None = None,
    protocols: list[str] | None = None,
) -> None:
    """Make simulated hospitals from a labelled brain: data to try things out, with true labels to measure against.

    Each hospital has its own patients (adults, elderly people, children) and its own scanner (noise, bias field,
    contrast, slice thickness). The same arguments give the same files. Needs the extra "demo".

    Args:
        out: folder for the site folders
        sites: number of hospitals
        training: number of unlabelled scans per site to train on
        validation: number of labelled scans per site to validate on
        test: number of labelled scans per site to test on
        spacing: size of a voxel in mm; 1.5, 2 and 2.5 have a grid of their own
        shape: voxels of the grid along each axis, three numbers; needed for any other spacing
        seed: seed of all random numbers
        unseen: add a children's hospital with 7 training scans, to join when the others have trained
        profiles: names of the hospitals to simulate, instead of the first ones: adult-3t elderly-3t thick-slice
            adult-1t5 other-vendor paediatric
        processes: number of worker processes, which take about 1 GB of memory each
        anatomies: folder of real label maps (*_aseg.nii.gz, FreeSurfer ids), one per person: each scan and each site's atlas is then
            one of these people, seen by the simulated scanner
        test_anatomies: label maps used for testing only, by number in the sorted list, such as 13-20 or 2,5,9-12; by
            default the last 40 %
        protocols: label protocol of each site in turn (a simulation of their difference): neuromorphometrics freesurfer-like, or
            with --anatomies freesurfer neuromorphometrics-like; by default the first for all

    Example:
        fedsr simulate sites --sites 4 --spacing 2 --unseen
    """
    from fedsr_monai.simulation.sites import simulate_sites

    def words(values: list[str] | None) -> list[str] | None:
        return [name for value in values for name in value.split(",") if name] if values else None

    folders = simulate_sites(
        out,
        sites,
        training,
        validation,
        test,
        spacing,
        shape,
        seed,
        unseen=unseen,
        profiles=words(profiles),
        processes=processes,
        anatomies=anatomies,
        test_anatomies=test_anatomies,
        protocols=words(protocols),
    )
    for folder in folders:
        print(folder)
