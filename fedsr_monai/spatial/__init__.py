"""Voxel grids, resampling between them, displacement fields and warping, and the NIfTI files that hold them."""
