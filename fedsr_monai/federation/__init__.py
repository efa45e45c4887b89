"""The federated layer: what a site does, what the server does, and the runner that joins them on one machine.

It knows the network only as named tensors. How tensors travel between machines is the business of `fedsr_monai.flare`.
"""

from fedsr_monai.federation.algo import FedSRAlgo
from fedsr_monai.federation.runner import federate
from fedsr_monai.federation.server import Server

__all__ = ["FedSRAlgo", "Server", "federate"]
