"""Write the segmentation head of a personalised network as a bundle ships it: `python benchmarks/protocol_head.py model.pt freesurfer.safetensors`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedsr_monai.handlers import save_checkpoint
from fedsr_monai.networks.weights import read_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="model.pt of `fedsr personalise`")
    parser.add_argument("head", type=Path)
    options = parser.parse_args()
    weights = read_weights(options.model)
    head = {key: value.half() for key, value in weights.items() if key.startswith("segmentation.")}
    save_checkpoint(head, options.head)


if __name__ == "__main__":
    main()
