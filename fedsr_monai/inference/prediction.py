"""What the network says of one scan: labels, and the registration of the atlas to it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils.enums import MetaKeys

from fedsr_monai.device import release_freed_memory
from fedsr_monai.engines.refine import refine_registration
from fedsr_monai.inference.interleaved import InterleavedInferer, on_network_grid
from fedsr_monai.inference.workflow import Workflow
from fedsr_monai.networks.protocols import NEUROMORPHOMETRICS
from fedsr_monai.spatial.grid import Grid
from fedsr_monai.transforms.labels_on_scan import is_finer
from fedsr_monai.transforms.local_intensities import with_intensities

SCAN = "scan"  # under which a bundle's preprocessing keeps the scan as it was read


@dataclass(frozen=True)
class Answer:
    """The answer of both heads.

    Attributes:
        logits: [K, D, H, W] on the grid of the image, which may be finer than the network's (`InterleavedInferer`).
        ddf: displacement [3, D, H, W] in voxels of the network's grid, from the atlas to the scan; None without registration.
        refined: the same, after gradient steps towards the logits (`refine_registration`); None without them. To judge the logits
            by it would be to judge them by themselves.
    """

    logits: torch.Tensor
    ddf: torch.Tensor | None = None
    refined: torch.Tensor | None = None


def ask(
    workflow: Workflow,
    image: torch.Tensor,
    register: bool,
    refine: int = 0,
    accurate: bool = False,
    scan: MetaTensor | None = None,
) -> Answer:
    """Run the network on a scan [1, 1, D, H, W], both heads in one pass where the inferer allows it.

    Args:
        workflow: with an atlas in its network for `register`.
        image: in [0, 1], background 0, on the network's grid or one that is a whole number of times finer.
        register: run the registration head too.
        refine: gradient steps on the deformation, with `register`; see `refine_registration`.
        accurate: average the logits over the scan and its mirror image, see `flip_average`.
        scan: as it was read, [1, D, H, W], if its voxels are finer than the network's: the gradient steps then see the borders
            that its intensities show (`LocalIntensities`).
    """
    network, inferer = workflow.network, workflow.inferer
    release_freed_memory()
    fields: list[torch.Tensor] = []  # the displacement, with `register`

    def both(own: torch.Tensor) -> torch.Tensor:
        prediction = network.predict(own)
        assert prediction.ddf is not None
        fields.append(prediction.ddf)
        release_freed_memory()
        return prediction.logits

    if not register:
        logits = inferer(image, network)
    elif isinstance(inferer, InterleavedInferer):
        logits = inferer(image, network, first=both)
    else:
        logits = inferer(image, network)
        both(on_network_grid(image, workflow.grid))
    if accurate:
        logits = flip_average(workflow, image, logits)
    if not register:
        return Answer(logits[0])
    ddf, refined = fields[0].float(), None
    if refine:
        target = on_network_grid(logits, workflow.grid)
        if scan is not None:
            voxels = scan.as_tensor().to(target.device)
            target = with_intensities(target[0], workflow.grid.affine, voxels, scan.affine.cpu().numpy())[None]
        refined = refine_registration(ddf, network.atlas_label, target, refine)[0]
    return Answer(logits[0], ddf[0], refined)


def label(workflow: Workflow, scan: MetaTensor, **options: Any) -> tuple[dict[str, Any], torch.Tensor, Answer]:
    """Run the whole workflow on one scan [1, D, H, W], as it was read.

    Args:
        workflow: see `load_workflow`.
        scan: 0 or above, background 0, with its affine.
        options: of `ask`.

    Returns:
        "image", the preprocessed scan, and "pred", its labels [1, D, H, W] on the voxels of its file; the image as the network saw it
        [1, 1, D, H, W]; and the network's answer, its logits on the network's grid alone.
    """
    data = workflow.preprocessing({"image": scan})
    del scan  # `data` has a copy
    image = data["image"].as_tensor()[None].to(workflow.device)
    answer = ask(workflow, image, scan=data.get(SCAN) if is_finer(data["image"]) else None, **options)
    data["pred"] = answer.logits
    # A copy of what is needed later: the postprocessing overwrites the logits, which take 275 MB where a scan has 1 mm.
    answer = replace(answer, logits=on_network_grid(answer.logits, workflow.grid).clone())
    release_freed_memory()
    return workflow.postprocessing(data), image, answer


@torch.no_grad()
def atlas_in_protocol(workflow: Workflow, image: torch.Tensor, labels: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Return labels of the atlas in the borders of the workflow's protocol, uint8 [1, D, H, W].

    The project's atlas is labelled in the borders of Neuromorphometrics. For another protocol there are no labels but those that its
    segmentation head gives the atlas image, as any scan: the errors that it makes there are in whatever the registration carries over.

    Args:
        workflow: see `load_workflow`.
        image: of the atlas, [1, D, H, W].
        labels: of the atlas, [1, D, H, W].
        grid: of both.
    """
    if workflow.protocol in (None, NEUROMORPHOMETRICS):
        return labels
    meta = {"filename_or_obj": "the atlas", MetaKeys.ORIGINAL_CHANNEL_DIM: 0}
    scan = MetaTensor(image.float(), affine=torch.as_tensor(grid.affine, dtype=torch.float64), meta=meta)
    return label(workflow, scan, register=False)[0]["pred"].as_tensor().cpu()


def flip_average(workflow: Workflow, image: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Return the mean of the logits of a scan and those of its mirror image, mirrored back; both [1, K, D, H, W].

    Left and right have the same labels, so that the mirror image of a brain is as good a brain.

    Args:
        workflow: network, inferer and grid.
        image: the scan [1, 1, D, H, W].
        logits: of the scan; they are overwritten.
    """
    axis = 2 + int(np.argmax(np.abs(workflow.grid.affine[0, :3])))  # the axis of the grid that runs from left to right
    mirrored = workflow.inferer(image.flip(axis), workflow.network)
    for channel, other in zip(logits.unbind(dim=1), mirrored.unbind(dim=1)):
        channel.add_(other.flip(axis - 1)).div_(2)  # one by one: logits take 275 MB where a scan has 1 mm
    return logits
