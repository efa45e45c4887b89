"""The volumes that brain structures can have, to tell a failed segmentation from an unusual brain."""

from __future__ import annotations

from collections.abc import Mapping

from fedsr_monai.labels import LABELS

# Smallest and largest volume in millilitres, left and right together, in 40 published label maps of real brains: 15 people of
# 18 to 90 years labelled by hand (OASIS-1, Neuromorphometrics; Landman and Warfield, MICCAI 2012 Workshop on Multi-Atlas Labeling),
# 5 heads labelled by FreeSurfer 6 (hebbianloop, FreeSurfer-Training-Data), and the 20 label maps that SynthSeg was trained on,
# of young, old and demented people (Billot et al., Medical Image Analysis 86, 2023). Norms by age, sex and head size, which would
# be too narrow here, are given by Potvin et al., NeuroImage 137, 2016.
OBSERVED: dict[int, tuple[float, float]] = {
    1: (1.3, 6.2),
    2: (312.0, 570.0),
    3: (311.0, 735.0),
    4: (6.5, 88.0),
    5: (20.5, 42.8),
    6: (11.4, 19.6),
    7: (5.0, 9.5),
    8: (7.0, 12.9),
    9: (2.1, 4.8),
    10: (14.4, 25.3),
    11: (4.0, 10.2),
    12: (1.3, 4.6),
    13: (80.9, 146.8),
}
# Factors that leave room for children, disease, and the difference between the two label protocols (both are among the maps
# above). Ventricles may be slits or hydrocephalic.
MARGIN = (0.5, 1.6)
VENTRICLE_MARGIN = (0.25, 3.5)
VENTRICLES = (1, 4)


def plausible_range(label: int) -> tuple[float, float]:
    """Return the smallest and the largest plausible volume of a structure in millilitres."""
    low, high = OBSERVED[label]
    below, above = VENTRICLE_MARGIN if label in VENTRICLES else MARGIN
    return below * low, above * high


def implausible_volumes(volumes: Mapping[int, float]) -> list[str]:
    """Return one text per structure with a volume (ml) that no human head has, such as "thalamus 41 ml (5.7 to 31.4)"."""
    found = []
    for label, volume in volumes.items():
        low, high = plausible_range(label)
        if volume and not low <= volume <= high:
            found.append(f"{LABELS[label]} {volume:.3g} ml ({low:.3g} to {high:.3g})")
    return found
