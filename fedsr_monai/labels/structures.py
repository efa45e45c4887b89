"""The 14 labels of the paper (Section III-A1), left and right merged, in the paper's order."""

from __future__ import annotations

LABELS: dict[int, str] = {
    0: "background",
    1: "3rd/4th ventricle",
    2: "cerebral white matter",
    3: "cerebral cortex",
    4: "lateral ventricle",
    5: "cerebellum white matter",
    6: "thalamus",
    7: "caudate",
    8: "putamen",
    9: "pallidum",
    10: "brain stem",
    11: "hippocampus",
    12: "amygdala",
    13: "cerebellum cortex",
}

# The abbreviations of the paper's text, for tables and figures.
ABBREVIATIONS: dict[int, str] = dict(
    enumerate(["BG", "Ven", "CrWM", "CrC", "LV", "ClWM", "TP", "Cau", "Put", "Pal", "BS", "Hip", "Amy", "ClC"])
)

# Distinct hues for neighbouring structures, readable on a grey scan.
COLOURS: dict[int, tuple[int, int, int]] = {
    0: (0, 0, 0),
    1: (64, 196, 255),
    2: (245, 245, 220),
    3: (214, 96, 77),
    4: (33, 102, 222),
    5: (222, 203, 164),
    6: (0, 158, 115),
    7: (123, 104, 238),
    8: (236, 112, 180),
    9: (64, 224, 170),
    10: (140, 140, 150),
    11: (240, 200, 40),
    12: (120, 220, 70),
    13: (230, 140, 40),
}

NUM_CLASSES = len(LABELS)
