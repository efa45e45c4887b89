"""The folder that `fedsr label` puts on the path of MONAI Label's processes: Python runs `sitecustomize` by itself."""
