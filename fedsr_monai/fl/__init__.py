"""The federated layer: what a site does, what the server does, and the runner that joins them on one machine."""

from fedsr_monai.fl.algo import FedSRAlgo
from fedsr_monai.fl.runner import federate
from fedsr_monai.fl.server import Server

__all__ = ["FedSRAlgo", "Server", "federate"]
