"""The systems that FedSR is compared with: networks and trainers that replace FedSR's own in a bundle's training
(`configs/baselines/` of a bundle; docs/baselines.md). No rounds, no files.
"""

from fedsr_monai.baselines.bi_jros import BiJROSTrainer
from fedsr_monai.baselines.brbs import BRBSTrainer
from fedsr_monai.baselines.deep_atlas import DeepAtlasTrainer
from fedsr_monai.baselines.networks import AdversarialNet, PairNet, SeparateNet, UReSNet
from fedsr_monai.baselines.tbi_one_shot import TBIOneShotTrainer, three_optimizers
from fedsr_monai.baselines.u_resnet import UReSNetTrainer

__all__ = [
    "AdversarialNet",
    "BRBSTrainer",
    "BiJROSTrainer",
    "DeepAtlasTrainer",
    "PairNet",
    "SeparateNet",
    "TBIOneShotTrainer",
    "UReSNet",
    "UReSNetTrainer",
    "three_optimizers",
]
