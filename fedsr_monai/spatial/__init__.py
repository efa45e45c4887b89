"""Voxel grids, resampling, displacement fields, warping and their files; nothing here knows about networks or sites."""
