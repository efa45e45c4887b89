"""FedSR on MONAI: one-shot federated brain MRI registration and segmentation."""

__version__ = "0.1.0"
