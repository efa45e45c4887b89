"""Code that runs first in MONAI Label's processes: `fedsr label` puts this folder on their path, and Python imports `sitecustomize`."""
