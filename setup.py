"""The list of packages; everything else about the package is in setup.cfg."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["fedsr_monai", "fedsr_monai.*"]), "fedsr_monai.bundles"])
