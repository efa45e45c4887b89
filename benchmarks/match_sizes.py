"""Match the sizes of structures of the weights that ship: `python benchmarks/match_sizes.py model.pt out.pt`, or, for the head of another
protocol, `python benchmarks/match_sizes.py model.pt out.safetensors --head freesurfer.safetensors --site FOLDER`.

The labelled scan is the project's atlas, or that of the site (see `fedsr_monai/networks/sizes.py`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fedsr_monai.atlas.standard import standard_atlas
from fedsr_monai.handlers import save_checkpoint
from fedsr_monai.labels import LABELS
from fedsr_monai.networks import FedSRNet
from fedsr_monai.networks.sizes import BIAS, match_sizes
from fedsr_monai.networks.weights import load_head, load_weights, read_weights
from fedsr_monai.sites.site import load_atlas

GRID = (2.0, (80, 96, 80))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--head", type=Path, help="segmentation head on these weights, to be matched in the place of their own"
    )
    parser.add_argument("--site", type=Path, help="site folder with the labelled scan")
    parser.add_argument("--share", type=float, default=1.0, help="of the biases that this takes")
    options = parser.parse_args()
    image, label = standard_atlas(*GRID) if options.site is None else load_atlas(options.site)[:2]
    network = load_head(load_weights(FedSRNet(), options.weights), options.head).set_atlas(image, label)
    biases = match_sizes(network.eval(), options.share)
    print({name: round(float(biases[k]), 2) for k, name in LABELS.items()})
    tensors = read_weights(options.weights if options.head is None else options.head)
    save_checkpoint(tensors | {BIAS: network.state_dict()[BIAS].to(tensors[BIAS].dtype)}, options.out)


if __name__ == "__main__":
    main()
