"""`fedsr benchmark`: measure accuracy beside ANTs, or speed."""

from __future__ import annotations

from pathlib import Path

from fedsr_monai.commands.site_folders import expand_sites
from fedsr_monai.errors import UserError


def benchmark(
    sites: list[str],
    out: str = "benchmarks/accuracy",
    methods: str = "affine,n4_syn",
    cases: int | None = None,
    weights: str | None = None,
    refine: int = 0,
    speed: bool = False,
    device: str | None = None,
) -> None:
    """Measure the network beside ANTs label propagation on the same labelled test scans, or measure speed.

    A row a structure, case and method in OUT.csv, means and spreads in OUT.json. What is in OUT.csv already is not measured again.

    Args:
        sites: site folders with labelled test scans
        out: path of the tables, without an ending
        methods: of affine, n4_syn, n4_syn_60_40_20, by commas; "none" for the network alone (the others need the extra 'benchmark')
        cases: test scans a site, by default all
        weights: checkpoint to measure; by default the one that comes with the bundle fedsr_site
        refine: also measure registration refined by this many gradient steps on each scan
        speed: measure seconds of network passes and training steps instead of accuracy, on the first site's grid
        device: cpu or cuda; by default cuda where there is one

    Example:
        fedsr benchmark sites --methods n4_syn --out benchmarks/accuracy
        fedsr benchmark sites/adult-3t --speed --out benchmarks/speed
    """
    import torch

    from fedsr_monai.benchmark.accuracy import run_accuracy
    from fedsr_monai.benchmark.speed import run_speed
    from fedsr_monai.evaluation.run import load_network, models_of_sites

    folders = expand_sites(sites)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = models_of_sites(folders[:1], weights)[0]
    if refine < 0:
        raise UserError(f"--refine: found {refine}, expected 0 or a number of gradient steps; for example --refine 20")
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    network = load_network(model, device)
    if speed:
        scan = next((item["image"] for item in model.site.test), None)
        for row in run_speed(out, network, model.site.spacing[0], device, scan=scan):
            print(f"{row['what']:<40}{row['median_seconds']:8.3f} s   ({row['min_seconds']:.3f} to {row['max_seconds']:.3f}, {row['precision']})")
    else:
        chosen = [] if methods == "none" else [method.strip() for method in methods.split(",")]
        for method, found in run_accuracy(folders, out, network, chosen, cases, device, refine).items():
            dice, seconds = found["dice"], found["seconds"]
            print(f"{method:<42}Dice {dice['mean']:.3f} ± {dice['sd']:.3f} ({dice['n']} scans)   {seconds['mean']:.1f} s a scan")
    print(f"{out}.csv")
