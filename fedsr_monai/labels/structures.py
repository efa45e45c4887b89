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

# SNOMED CT codes, by which DICOM names brain structures (context groups 7140 and 7151). None stands for the third and fourth
# ventricle together.
SNOMED_CT: dict[int, tuple[str, str]] = {
    1: ("35764002", "Brain ventricle"),
    2: ("68523003", "Cerebral White Matter"),
    3: ("40146001", "Cerebral cortex"),
    4: ("66720007", "Lateral Ventricle"),
    5: ("33060004", "Cerebellar White Matter"),
    6: ("42695009", "Thalamus"),
    7: ("11000004", "Caudate Nucleus"),
    8: ("89278009", "Putamen"),
    9: ("14738005", "Globus Pallidus"),
    10: ("119238007", "Brain Stem"),
    11: ("5366008", "Hippocampus"),
    12: ("4958002", "Amygdala"),
    13: ("25991003", "Cerebellar Cortex"),
}

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
