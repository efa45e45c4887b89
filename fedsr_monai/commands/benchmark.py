"""`fedsr benchmark`: compare accuracy with ANTs, or measure speed."""

from __future__ import annotations

from fedsr_monai.commands.site_folders import expand_sites


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
    """Compare the network with ANTs label propagation on the same labelled test scans, or measure speed.

    OUT.csv has one row per structure, case and method; OUT.json has means and standard deviations. Cases that are
    already in OUT.csv are not measured again.

    Args:
        sites: site folders with labelled test scans
        out: path of the tables, without a file extension
        methods: one or more of affine, n4_syn, n4_syn_60_40_20 and n4_syn_cc, separated by commas (they need the extra
            "benchmark"), or none for the network alone
        cases: number of test scans per site; by default all
        weights: checkpoint to measure; by default the one that comes with the bundle fedsr_site
        refine: also measure registration refined by this many gradient steps on each scan
        speed: time network passes and training steps on the first site's grid, instead of measuring accuracy
        device: cpu, cuda or cuda:N; by default the first GPU, if there is one

    Example:
        fedsr benchmark sites --methods n4_syn --out benchmarks/accuracy
        fedsr benchmark sites/adult-3t --speed --out benchmarks/speed
    """
    from fedsr_monai.benchmark.accuracy import run_accuracy
    from fedsr_monai.benchmark.speed import run_speed
    from fedsr_monai.checks import check_whole_number
    from fedsr_monai.device import find_device
    from fedsr_monai.evaluation.run import load_network, models_of_sites
    from fedsr_monai.sites.check import ensure_fit

    check_whole_number("--refine", refine, least=0)
    folders = expand_sites(sites)
    device = str(find_device(device))
    model = models_of_sites(folders[:1], weights)[0]
    network = load_network(model, device)
    if speed:
        ensure_fit(folders[:1])
        scan = next((item["image"] for item in model.site.test), None)
        for row in run_speed(out, network, model.site.spacing[0], device, scan=scan):
            spread = f"({row['min_seconds']:.3f} to {row['max_seconds']:.3f}, {row['precision']})"
            print(f"{row['what']:<40}{row['median_seconds']:8.3f} s   {spread}")
    else:
        chosen = [] if methods == "none" else [method.strip() for method in methods.split(",")]
        for method, found in run_accuracy(folders, out, network, chosen, cases, device, refine).items():
            dice, seconds = found["dice"], found["seconds"]
            scores = f"Dice {dice['mean']:.3f} ± {dice['sd']:.3f} ({dice['n']} scans)"
            print(f"{method:<42}{scores}   {seconds['mean']:.1f} s per scan")
    print(f"{out}.csv")
