"""Studies: arms, seeds and contrasts that are fixed in a plan before anything runs, and tables with their statistics."""

from fedsr_monai.study.plan import Arm, Plan, read_plan
from fedsr_monai.study.run import run_study

__all__ = ["Arm", "Plan", "read_plan", "run_study"]
