"""`fedsr demo`: run the whole method on simulated sites."""

from __future__ import annotations


def demo(out: str = "demo", sites: int = 3, from_scratch: bool = False, quick: bool = False, seed: int = 0) -> None:
    """Run the whole method on simulated hospitals: simulate, check, federate, personalise, evaluate, report.

    Minutes on two CPU cores, no download. It starts from the weights that come with the bundle, unless --from_scratch. Needs
    the extra "demo".

    Args:
        out: folder for sites/, run/ and report.html
        sites: hospitals in the rounds; one more, of children, joins after them
        from_scratch: begin with random weights, and voxels of 2.5 mm
        quick: a toy size, a minute; it shows that everything works, and no accuracy
        seed: of everything random

    Example:
        fedsr demo
        fedsr demo --from_scratch --out demo-scratch
    """
    from fedsr_monai.demo import run_demo

    run_demo(out, sites, from_scratch, quick, seed)
