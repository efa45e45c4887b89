"""Voxel grids, resampling, displacement fields, warping and their files; nothing that knows a network or a site."""
