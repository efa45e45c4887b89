"""What runs a federation under NVIDIA FLARE: the components that a job names, the job, and the setup of a startup kit.

How sites train and how the server averages is in `federation`, which knows nothing of FLARE. This package needs the extra `nvflare`;
only `commands` imports it.
"""
