"""Voxel grids, resampling, displacement fields, warping, and the files that hold them; nothing that knows a network or a site."""
