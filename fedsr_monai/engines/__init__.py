"""Ignite engines: the joint trainer and the loss search."""

from fedsr_monai.engines.joint import JointTrainer, freeze, head_optimizers

__all__ = ["JointTrainer", "freeze", "head_optimizers"]
