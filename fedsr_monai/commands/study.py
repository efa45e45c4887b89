"""`fedsr study`: run a planned comparison."""

from __future__ import annotations


def study(
    plan: str,
    out: str,
    quick: bool = False,
    processes: int = 1,
    anatomies: str | None = None,
    sites: list[str] | None = None,
    add: list[str] | None = None,
    arms: list[str] | None = None,
    seeds: list[int] | None = None,
) -> None:
    """Run the arms of a plan over its seeds and write tidy tables, paired statistics and a report.

    The plan (JSON) names arms, sites, seeds, rounds and the contrasts to test before anything runs. A study that was stopped
    resumes when the same command is given again. Needs the extra "study".

    Args:
        plan: the plan's file, such as studies/table4.json
        out: folder for the sites, the runs, the tables and report.html
        quick: use the plan's own quick size, which shows that everything runs but not how accurate it is
        processes: number of runs at once
        anatomies: folder of real label maps (*_aseg.nii.gz), one per person, which make the plan's simulated sites
            semi-real
        sites: site folders to take instead of the plan's
        add: cases.csv tables of runs of the same plan on the same sites made elsewhere, such as other seeds on another
            machine; the tables include these runs, and they are not made again
        arms: arms of the plan to run now; the tables include all that are finished (default: all)
        seeds: seeds of the plan to run now (default: all)

    Example:
        fedsr study studies/table4.json --out results/table4 --processes 2
        fedsr study studies/gain.json --out results/gain --arms alone-1 joined-1 --seeds 0
    """
    from fedsr_monai.study import run_study

    print(run_study(plan, out, quick, processes, anatomies, sites, add or (), arms or (), seeds or ()))
