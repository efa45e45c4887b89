"""Networks: encoder, SCIE decoders, spatial transformer and the assembled FedSRNet."""

from fedsr_monai.networks.fedsr_net import PRESETS, FedSRNet, Prediction, Registration

__all__ = ["FedSRNet", "PRESETS", "Prediction", "Registration"]
