"""`fedsr demo`: run the whole method on simulated sites."""

from __future__ import annotations


def demo(out: str = "demo", sites: int = 3, from_scratch: bool = False, quick: bool = False, seed: int = 0) -> None:
    """Run the whole method on simulated hospitals: simulate, check, federate, personalise, evaluate, report.

    Takes some minutes on two CPU cores and downloads nothing. It begins with the weights that come with the bundle,
    unless --from_scratch is given. Needs the extra "demo".

    Args:
        out: folder for sites/, run/ and report.html
        sites: number of hospitals in the rounds; one more, a children's hospital, joins after them
        from_scratch: begin with random weights, on voxels of 2.5 mm
        quick: take about a minute at a toy size, which shows that everything works but not how accurate it is
        seed: seed of all random numbers

    Example:
        fedsr demo
        fedsr demo --from_scratch --out demo-scratch
    """
    from fedsr_monai.demo import run_demo

    run_demo(out, sites, from_scratch, quick, seed)
