"""The network: encoder, SCIE decoders, site-aggregated features, their assembly, and the loading of weights. No losses,
no training.
"""

from fedsr_monai.networks.fedsr_net import PRESETS, FedSRNet, Prediction, Registration

__all__ = ["FedSRNet", "PRESETS", "Prediction", "Registration"]
