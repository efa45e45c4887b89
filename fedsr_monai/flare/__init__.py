"""What runs a federation under NVIDIA FLARE: the components that a job names, the job, and the setup of a startup kit.

How sites train and how the server averages is in `federation`, which knows nothing of FLARE. Needs the extra `nvflare`; of the other
rooms only `commands` imports this one.
"""
