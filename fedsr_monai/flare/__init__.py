"""The federation under NVIDIA FLARE: what its job names. Needs the extra `nvflare`; nothing outside this package imports it."""
