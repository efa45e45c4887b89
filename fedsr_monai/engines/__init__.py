"""Ignite engines: the joint trainer and the loss search, their objectives, and the refinement of a single deformation.
Handlers are in `handlers`.
"""

from fedsr_monai.engines.joint import JointTrainer
from fedsr_monai.engines.loss_search import LossSearch, LossSearchTrainer, halves
from fedsr_monai.engines.optimizers import freeze, head_optimizers

__all__ = ["JointTrainer", "LossSearch", "LossSearchTrainer", "freeze", "halves", "head_optimizers"]
