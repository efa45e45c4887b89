"""`fedsr study`: run the arms of a plan over its seeds, several at once and resumable, and write the tables."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from fedsr_monai.bundle_path import bundle_path
from fedsr_monai.checks import check_choice, check_whole_number
from fedsr_monai.errors import UserError, one_line
from fedsr_monai.evaluation.run import evaluate_models, models_of_run, models_of_sites
from fedsr_monai.federation.policies import find_policy
from fedsr_monai.federation.runner import federate
from fedsr_monai.federation.site_state import stable_seed
from fedsr_monai.files import claim_folder
from fedsr_monai.personalisation import find_weights, personalise
from fedsr_monai.pretraining import with_encoder
from fedsr_monai.progress import Progress, say
from fedsr_monai.sites.site import Site, load_site
from fedsr_monai.spatial.nifti import volume_stem
from fedsr_monai.study.page import write_report
from fedsr_monai.study.plan import ALL, MEMBERS, RANDOM, SHIPPED, UNSEEN, Plan, read_plan
from fedsr_monai.study.sites import check_sources, study_folders, with_fewer_scans
from fedsr_monai.study.tables import PRETRAINING_FOLDER, START_FOLDER, read_cases, write_tables

RECORD = "plan.json"


@dataclass(frozen=True)
class Job:
    """One arm with one seed; plain values, for a process of its own."""

    plan: Plan
    arm: str
    seed: int
    members: tuple[str, ...]
    unseen: tuple[str, ...]
    run: Path


def run_study(
    plan: str | os.PathLike,
    out: str | os.PathLike,
    quick: bool = False,
    processes: int = 1,
    anatomies: str | os.PathLike | None = None,
    sites: Sequence[str | os.PathLike] | None = None,
    add: Sequence[str | os.PathLike] = (),
    arms: Sequence[str] = (),
    seeds: Sequence[int] = (),
) -> Path:
    """Run a study and return the path of its report.

    Finished runs are kept: the same call resumes a study that was stopped, and the tables are written after every run. A run
    that fails is named at the end and does not stop the others.

    Args:
        plan: the plan's JSON file.
        out: folder for sites/, runs/<arm>/seed-<n>/, results.csv, cases.csv, summary.csv, contrasts.csv, mechanism.csv, sa.csv, cost.csv
            and report.html.
        quick: use the plan's own quick size, which shows that everything runs but not how accurate it is.
        processes: number of runs at once, with one thread each if there are several.
        anatomies: folder of label maps of people: the plan's simulated sites become semi-real ones (docs/simulate.md).
        sites: site folders to take instead of the plan's.
        add: cases.csv tables of runs of the same plan on the same sites that were made elsewhere; the tables include
            these runs, and they are not made again.
        arms, seeds: arms and seeds of the plan to run now; all if not named. The tables include every finished run.

    Raises:
        UserError: the plan or an argument is wrong, `out` belongs to another plan, or runs failed.
    """
    check_whole_number("--processes", processes)
    study, out = read_plan(plan, quick), Path(out)
    check_sources(study, anatomies, sites)
    for where, parts, choices in (("--arms", arms, study.arms), ("--seeds", seeds, study.seeds)):
        for part in parts:
            check_choice(where, part, choices)
    added = read_cases(add, study)
    elsewhere = {(row["arm"], row["seed"]) for row in added}
    record = json.loads(json.dumps(asdict(study)))
    record["data"] = "site folders" if sites else "semi-real sites" if anatomies else "sites of the plan"
    claim_folder(out, RECORD, record, "choose another folder for --out", "a study")
    folders = study_folders(study, out, processes, anatomies, sites)
    loaded = [load_site(folder) for folder in folders]
    _check_same_cases(added, loaded)
    names = {site.name: str(folder) for site, folder in zip(loaded, folders)}
    for name in study.unseen:
        if name not in names:
            raise UserError(f"{plan}: unseen", found=repr(name), expected=f"some of {', '.join(names)}")
    jobs = [job for job in _jobs(study, plan, names, out) if (job.arm, job.seed) not in elsewhere]
    wanted = [job for job in jobs if job.arm in (arms or study.arms) and job.seed in (seeds or study.seeds)]
    missing = [job for job in wanted if not _is_done(job)]
    failed = []
    done = len(wanted) - len(missing)
    with Progress(total=len(wanted), initial=done, desc=study.name, unit="run", announce=True) as bar:
        for job, fault in _run(missing, processes):
            bar.update()
            if fault:
                failed.append(
                    UserError(job.run, found=fault, expected="a finished run", fix="run the same command again")
                )
                say(str(failed[-1]))  # now, as the others may take hours
            else:
                write_tables(out, study, {(j.arm, j.seed): j.run for j in jobs if _is_done(j)}, added)
    finished = {(job.arm, job.seed): job.run for job in jobs if _is_done(job)}
    write_report(out, study, write_tables(out, study, finished, added), finished)
    if failed:
        raise failed[0] if len(failed) == 1 else UserError("\n".join(map(str, failed)))
    return out / "report.html"


def _jobs(study: Plan, plan: str | os.PathLike, names: Mapping[str, str], out: Path) -> list[Job]:
    """Return the runs of a study; `names` holds the site folders by name.

    Raises:
        UserError: an arm is at sites that do not exist, or at a site with too few scans.
    """
    members = {name: folder for name, folder in names.items() if name not in study.unseen}
    unseen = {name: names[name] for name in study.unseen}
    of_arms = {}
    for name, arm in study.arms.items():
        taken = members if arm.at == MEMBERS else unseen
        if not taken:
            where = f"{plan}: arms.{name}.at"
            raise UserError(where, found=arm.at, expected="such sites", fix="name them in 'unseen'")
        if arm.scans is not None:
            fewer = out / f"sites-of-{arm.scans}"
            taken = {site: str(with_fewer_scans(folder, fewer / site, arm.scans)) for site, folder in taken.items()}
        of_arms[name] = tuple(taken.values()), tuple(unseen.values()) if arm.at == MEMBERS else ()
    return [
        Job(study, name, seed, *folders, out / "runs" / name / f"seed-{seed}")
        for seed in study.seeds
        for name, folders in of_arms.items()
    ]


def _check_same_cases(added: Sequence[Mapping[str, Any]], sites: Sequence[Site]) -> None:
    """Refuse measurements that were made on other cases than the test scans of these sites."""
    cases: dict[str, set[str]] = {}
    for row in added:
        cases.setdefault(row["site"], set()).add(row["case"])
    here = {site.name: {volume_stem(scan["image"]) for scan in site.test if "label" in scan} for site in sites}
    for name, found in cases.items():
        if found != here.get(name):
            of_site = f"site {name!r} with {', '.join(sorted(found))}"
            expected = "; ".join(f"{name} with {', '.join(sorted(scans))}" for name, scans in here.items())
            raise UserError("--add", found=of_site, expected=expected, fix="add only tables of the same sites")


def _is_done(job: Job) -> bool:
    return (job.run / "evaluation" / "metrics.json").is_file() and (job.run / "evaluation" / "done").is_file()


def _run(jobs: Sequence[Job], processes: int) -> Iterator[tuple[Job, str | None]]:
    if processes == 1:
        yield from ((job, run_job(job)) for job in jobs)
        return
    with ProcessPoolExecutor(processes, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        futures = {pool.submit(run_job, job): job for job in jobs}
        try:
            yield from ((futures[future], future.result()) for future in as_completed(futures))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def run_job(job: Job) -> str | None:
    """Train, personalise and evaluate one arm with one seed; return what went wrong in one line, or None."""
    try:
        _train(job)
    except Exception as error:  # of one arm and seed; the others go on
        return one_line(error)
    return None


def _train(job: Job) -> None:
    plan, arm = job.plan, job.plan.arms[job.arm]
    policy = arm.policy or ("pooled" if arm.baseline else "fedsr")
    clients = len(job.members) if find_policy(policy).pools_images else 1  # one client takes the steps of all sites
    steps = {"epoch_length": plan.steps * clients, "val_interval": 10**6}
    overrides: dict[str, Any] = {**steps, **plan.overrides, **arm.overrides}
    weights = arm.from_weights
    if weights == RANDOM:
        weights = None
    elif weights == SHIPPED:
        weights = str(bundle_path("fedsr_encoder") / "models" / "model.pt")
    if arm.pretrain is not None:
        weights = str(_pretrained(job, arm.pretrain, overrides))
    rounds, seed = plan.rounds, job.seed
    if arm.start is not None:
        first = job.run / START_FOLDER
        federate(
            job.members,
            first,
            policy=arm.start["policy"],
            rounds=arm.start["rounds"],
            seed=seed,
            overrides=overrides,
            from_weights=weights,
        )
        weights = str(find_weights(first, bundle_path("fedsr_encoder"))[0])
        # The random numbers must differ from those of the first rounds, because rounds are counted from one again.
        rounds, seed = rounds - arm.start["rounds"], stable_seed(job.seed, START_FOLDER)
    federate(
        job.members,
        job.run,
        rounds,
        policy=arm.policy,
        seed=seed,
        overrides=overrides,
        from_weights=weights,
        baseline=arm.baseline,
    )
    if arm.personalise:
        same = _of_site_bundle({**plan.overrides, **arm.overrides})
        settings = dict(plan.personalise)
        fitted = job.unseen if settings.pop("at", ALL) == UNSEEN else (*job.members, *job.unseen)
        for folder in fitted:
            target = job.run / "personalised" / load_site(folder).name
            personalise(folder, job.run, target, seed=job.seed, overrides=same, **settings)
    models = models_of_run(job.run)
    measured = {model.site.name for model in models}
    for folder in job.unseen:  # without personalisation an unseen site gets the network of the first member
        if load_site(folder).name not in measured:
            models += models_of_sites([folder], models[0].weights)
    figures = int(job.seed == plan.seeds[0])  # for the error maps
    evaluate_models(models, job.run / "evaluation", figures=figures, progress=False)
    for variant in plan.sa:
        evaluate_models(models, job.run / "evaluation" / f"sa-{variant}", figures=0, progress=False, sa=variant)
    (job.run / "evaluation" / "done").touch()


def _pretrained(job: Job, settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> Path:
    """Train a baseline on the pooled scans of the arm's sites, and return weights with its encoder and all else untrained."""
    mine = {**job.plan.overrides, "epoch_length": settings["steps"], "val_interval": 10**6}
    folder, baseline = job.run / PRETRAINING_FOLDER, settings["baseline"]
    federate(job.members, folder, settings["rounds"], "fedsr_encoder", seed=job.seed, overrides=mine, baseline=baseline)
    trained = folder / "sites" / "pooled" / "model.pt"
    return with_encoder(trained, folder / "encoder.pt", job.seed, overrides, job.plan.arms[job.arm].baseline)


def _of_site_bundle(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the overrides that also apply in the personalised phase: what an arm switches off in the rounds stays off after them."""
    config = ConfigParser.load_config_file(str(bundle_path("fedsr_site") / "configs" / "train.json"))
    reserved = ("epochs", "epoch_length", "seed", "val_interval", "sa_alpha", "heads_first")  # the phase has its own
    return {key: value for key, value in overrides.items() if key.split("#")[0] in config and key not in reserved}
