"""The simulated hospitals: their populations and their scanners."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fedsr_monai.atlas.templates import ACCUMBENS, BASAL_FOREBRAIN, NUM_REGIONS, VENTRAL_DIENCEPHALON, VESSEL
from fedsr_monai.checks import check_choice
from fedsr_monai.simulation.shape import Population

# Signal of each region in a T1-weighted gradient echo, cerebral white matter = 1; 0 is the CSF around the brain.
TISSUE = {
    0: 0.24, 1: 0.24, 2: 1.00, 3: 0.66, 4: 0.19, 5: 0.96, 6: 0.84, 7: 0.70, 8: 0.74, 9: 0.88, 10: 0.88,
    11: 0.65, 12: 0.63, 13: 0.66, ACCUMBENS: 0.68, VENTRAL_DIENCEPHALON: 0.88, VESSEL: 0.60, BASAL_FOREBRAIN: 0.68,
}  # fmt: skip


@dataclass(frozen=True)
class Scanner:
    """One scanner and its protocol; intensities relative to cerebral white matter, lengths in mm."""

    shift: Mapping[int, float] = field(default_factory=dict)  # shift of the tissue means, by label
    contrast: float = 1.0  # stretches the means about white matter; below 1, grey and white matter come closer
    jitter: float = 0.015  # standard deviation of the means from scan to scan
    texture: str = "2009c"  # template of the residual texture: 2009c, mni152 or mixed
    texture_strength: float = 0.8
    sulci: float = 1.0  # how much of the fluid in the fine sulci is visible
    blur: float = 0.3  # standard deviation, mm
    slice_axis: int = 2
    slice_thickness: float = 0.0  # mm, 0: isotropic
    gamma: tuple[float, float] = (0.95, 1.05)
    bias_sd: float = 0.15
    bias_scale: float = 50.0  # mm
    noise: float = 0.02
    periventricular: float = 0.0  # darkening of the white matter beside the ventricles
    strip_error: float = 0.8  # mm, standard deviation of the border of the brain mask


@dataclass(frozen=True)
class Profile:
    """One simulated hospital: its population and its scanner."""

    name: str
    population: Population = Population()
    scanner: Scanner = Scanner()


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("adult-3t", Population(), Scanner(bias_sd=0.22, bias_scale=45, noise=0.015, texture="mixed")),
        Profile(
            "elderly-3t",
            Population(ventricle=2.0, ventricle_sd=0.5, scale=0.99),
            Scanner(
                shift={3: -0.02, 6: -0.03, 8: -0.03, 9: -0.05},
                contrast=0.92,
                texture="mni152",
                bias_sd=0.18,
                noise=0.022,
                periventricular=0.22,
                gamma=(0.92, 1.05),
                blur=0.5,
                sulci=1.5,
            ),
        ),
        Profile(
            "thick-slice",
            Population(ventricle=0.6, amplitude=0.95),
            Scanner(
                shift={3: 0.03, 7: 0.02, 8: 0.02},
                contrast=0.95,
                texture="2009c",
                slice_thickness=5.0,
                bias_sd=0.12,
                bias_scale=60,
                noise=0.02,
                gamma=(0.85, 1.0),
            ),
        ),
        Profile(
            "adult-1t5",
            Population(amplitude=1.0, ventricle=0.3),
            Scanner(
                shift={0: 0.06, 1: 0.06, 4: 0.06, 3: 0.05, 13: 0.04, 11: 0.04, 12: 0.04},
                contrast=0.95,
                texture="2009c",
                noise=0.04,
                bias_sd=0.10,
                bias_scale=60,
                blur=0.7,
                strip_error=1.2,
            ),
        ),
        Profile(
            "other-vendor",
            Population(amplitude=0.95),
            Scanner(
                shift={0: -0.14, 1: -0.14, 4: -0.12, 3: -0.08, 13: -0.06, 7: -0.05, 8: -0.03, 9: 0.04, 6: -0.02},
                contrast=1.0,
                texture="mni152",
                texture_strength=1.0,
                noise=0.025,
                bias_sd=0.28,
                bias_scale=40,
                gamma=(1.0, 1.15),
                slice_axis=0,
                slice_thickness=2.4,
            ),
        ),
        Profile(
            "paediatric",
            Population(scale=0.92, scale_sd=0.025, ventricle=-1.0, ventricle_sd=0.4, amplitude=0.95),
            Scanner(
                shift={2: -0.02, 3: 0.06, 6: 0.02, 9: -0.06, 13: 0.04},
                contrast=0.9,
                texture="mixed",
                noise=0.025,
                bias_sd=0.15,
                gamma=(0.9, 1.1),
                strip_error=0.6,
                sulci=0.8,
            ),
        ),
    )
}
UNSEEN = "paediatric"  # joins after the federated phase, with few scans, as HCPChild does in the paper
UNSEEN_TRAINING = 7


def profile(name: str) -> Profile:
    """Return a built-in profile by its name.

    Raises:
        UserError: there is no profile of that name.
    """
    check_choice("profiles", name, PROFILES)
    return PROFILES[name]


def random_profile(rng: np.random.Generator, name: str = "random") -> Profile:
    """Draw a hospital from wider ranges than those of the built-in profiles, to train for unseen scanners."""
    uniform = rng.uniform
    shift = {label: float(rng.normal(0, 0.05)) for label in range(NUM_REGIONS)}
    ventricular = float(rng.normal(0, 0.06))
    for label in (0, 1, 4):
        shift[label] = ventricular + 0.3 * shift[label]
    population = Population(
        scale=float(uniform(0.9, 1.01)),
        ventricle=float(uniform(-1.0, 2.4) if rng.random() < 0.6 else uniform(-0.5, 0.8)),
        amplitude=float(uniform(0.8, 1.05)),
    )
    scanner = Scanner(
        shift=shift,
        contrast=float(uniform(0.8, 1.1)),
        texture=("2009c", "mni152", "mixed")[rng.integers(3)],
        texture_strength=float(uniform(0.4, 1.1)),
        sulci=float(uniform(0.6, 1.6)),
        blur=float(uniform(0.0, 1.0)),
        slice_axis=int(rng.integers(3)),
        slice_thickness=float(uniform(2.5, 6.0) if rng.random() < 0.35 else 0.0),
        gamma=(0.8, 1.2),
        bias_sd=float(uniform(0.05, 0.3)),
        bias_scale=float(uniform(35, 65)),
        noise=float(uniform(0.008, 0.05)),
        periventricular=float(uniform(0.0, 0.3) if population.ventricle > 1 else 0.0),
        strip_error=float(uniform(0.3, 1.5)),
    )
    return Profile(name, population, scanner)
