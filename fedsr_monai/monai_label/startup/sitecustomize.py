"""Let torchvision be imported where its compiled operators cannot be loaded.

MONAI Label needs two drawing functions of torchvision, in plain Python. A torchvision built for CUDA beside a torch built
for the CPU cannot load its compiled part, and then fails to import because it describes two operators that no library has declared
(``operator torchvision::nms does not exist``). Declaring them is enough; nothing calls them here. MONAI Label trains in
processes of its own, so this must run in each of them: Python imports a module of this name when it starts.
"""

import importlib.util
from pathlib import Path

import torch

OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def declare() -> torch.library.Library | None:
    """Declare the operators, unless torchvision's own library provides them; they exist as long as the returned object."""
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        return None
    for library in Path(found.origin).parent.glob("_C*"):
        try:
            torch.ops.load_library(library)
            return None
        except OSError:
            continue
    declared = torch.library.Library("torchvision", "DEF")
    for operator in OPERATORS:
        declared.define(operator)
    return declared


LIBRARY = declare()
