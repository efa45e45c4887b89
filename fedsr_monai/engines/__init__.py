"""Ignite engines: the joint trainer and the loss search, their objectives, and the refinement of one deformation.
Handlers are in `handlers`.
"""

from fedsr_monai.engines.joint import JointTrainer, freeze, head_optimizers
from fedsr_monai.engines.loss_search import LossSearch, LossSearchTrainer, halves

__all__ = ["JointTrainer", "LossSearch", "LossSearchTrainer", "freeze", "halves", "head_optimizers"]
