"""How well a network fits a site, measured on what every site has: unlabelled scans and an atlas."""

from __future__ import annotations

import numpy as np
import torch
from monai.transforms import LoadImage

from fedsr_monai.device import bfloat16_pays, find_device
from fedsr_monai.evaluation.run import SiteModel, load_network
from fedsr_monai.labels.agreement import agreement
from fedsr_monai.spatial.reader import VolumeReader


@torch.no_grad()
def head_agreement(model: SiteModel, most: int = 8) -> float:
    """Return the mean Dice between the labels of the two heads, over the site's first `most` training scans.

    Raises:
        UserError: the weights belong to another network, or a scan cannot be read.
    """
    device = find_device(None)
    network = load_network(model, device).eval()
    load = LoadImage(VolumeReader(), ensure_channel_first=True)
    found = []
    for item in model.site.training[:most]:
        image = load(item["image"]).as_tensor().float()[None].to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16_pays(device)):
            prediction = network.predict(image)
        assert prediction.ddf is not None  # asked for
        segmentation, registration = prediction.logits.argmax(dim=1), network.warp_labels(prediction.ddf.float())
        found.append(agreement(segmentation[0].cpu().numpy(), registration[0, 0].cpu().numpy()))
    return float(np.mean(found))


@torch.no_grad()
def atlas_dice(model: SiteModel) -> float:
    """Return the mean Dice between the labels of a site's atlas and those that the segmentation head gives to its image.

    Raises:
        UserError: the weights belong to another network.
    """
    device = find_device(None)
    network = load_network(model, device).eval()
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16_pays(device)):
        labels = network(network.atlas_image).argmax(dim=1)
    return agreement(labels[0].cpu().numpy(), network.atlas_label[0, 0].cpu().numpy())
