"""The whole method on simulated hospitals, from nothing to the report."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedsr_monai.bundle_path import bundle_path
from fedsr_monai.checks import check_whole_number
from fedsr_monai.errors import UserError, UserErrors
from fedsr_monai.evaluation.run import PERSONALISED, evaluate, summary_lines
from fedsr_monai.evaluation.stages import comparison_lines
from fedsr_monai.federation.runner import federate
from fedsr_monai.personalisation import personalise
from fedsr_monai.report import write_report
from fedsr_monai.simulation.profiles import UNSEEN
from fedsr_monai.simulation.sites import simulate_sites
from fedsr_monai.sites.check import check_site

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Size:
    """The amount of work that the demo does. A step trains on one scan and the atlas."""

    spacing: float  # mm
    shape: tuple[int, int, int]
    training: int  # scans per site
    test: int
    rounds: int
    steps: int  # per site and round
    fitting_epochs: int  # of the personalised phase
    fitting_steps: int  # per epoch
    joining_epochs: int  # of the personalised phase of the site that joins after the rounds


# The simulated hospitals follow another label protocol than the weights that ship. Only their own labelled scan shows
# it, which is what personal heads are for.
PROTOCOL = "freesurfer-like"


FROM_SHIPPED = Size(
    2.0, (80, 96, 80), training=4, test=2, rounds=3, steps=6, fitting_epochs=4, fitting_steps=6, joining_epochs=4
)
FROM_SCRATCH = Size(
    2.5, (64, 80, 64), training=4, test=2, rounds=7, steps=24, fitting_epochs=1, fitting_steps=12, joining_epochs=18
)
QUICK = Size(
    6.0, (32, 32, 32), training=2, test=1, rounds=1, steps=2, fitting_epochs=1, fitting_steps=2, joining_epochs=1
)


def run_demo(
    out: str | os.PathLike = "demo", sites: int = 3, from_scratch: bool = False, quick: bool = False, seed: int = 0
) -> Path:
    """Simulate sites, check them, federate, personalise (also at a site that joins), evaluate, and write the report.

    Prints one line per stage. An interrupted demo keeps what it had finished: the same call resumes there.

    Args:
        out: folder for sites/, run/ and report.html.
        sites: number of hospitals in the rounds; one more, a children's hospital, joins after them.
        from_scratch: begin with random weights, at 2.5 mm, instead of the weights that ship with the bundle, at 2 mm.
        quick: take a toy size, which shows that everything works but not how accurate it is.
        seed: seed of all random numbers.

    Returns:
        Path of the report.

    Raises:
        UserError: an argument is wrong, `out` holds another demo, or it cannot be written.
    """
    check_whole_number("sites", sites)
    check_whole_number("seed", seed, least=0)
    out = Path(out)
    size = QUICK if quick else FROM_SCRATCH if from_scratch else FROM_SHIPPED
    weights = None if from_scratch else bundle_path("fedsr_encoder") / "models" / "model.pt"
    if weights is not None and not weights.is_file():
        fix = "add --from_scratch to begin with random weights"
        raise UserError(weights, "no such file", "the weights that come with the bundle", fix)
    run, evaluation, report = out / "run", out / "run" / "evaluation", out / "report.html"

    with stage("simulate", f"{sites} sites and one that joins later, voxels of {size.spacing:g} mm"):
        folders = simulate_sites(
            out / "sites",
            sites,
            size.training,
            1,
            size.test,
            size.spacing,
            size.shape,
            seed,
            unseen=True,
            processes=os.cpu_count() or 1,
            protocols=[PROTOCOL],
        )
    members = [folder for folder in folders if folder.name != UNSEEN]

    with stage("check", "every file of every site"):
        faults = [fault for folder in folders for fault in check_site(folder)]
        if faults:
            raise UserErrors(faults)

    # Measured on this demo, from the weights that ship: with one learning rate of 1e-4 for everything, the Dice of
    # segmentation rises by 0.007 and that of registration falls by 0.0065, nearly all of it through the steps of its
    # own head (with the head frozen in the rounds it falls by 0.0004). At a tenth of the rate it falls by 0.0017, at
    # three hundredths not at all.
    rate, fitting_rate, registration = (2e-3, 3e-3, 1.0) if weights is None else (1e-4, 1e-4, 0.03)
    begin = "random weights" if weights is None else "the weights that come with the bundle"
    with stage("federate", f"{size.rounds} rounds of {size.steps} steps per site, from {begin}"):
        overrides = {
            "epoch_length": size.steps,
            "val_interval": size.rounds + 1,
            "learning_rate": rate,
            "registration_lr": registration,
        }
        federate(members, run, size.rounds, seed=seed, from_weights=weights, overrides=overrides)

    epochs = {folder: size.fitting_epochs if folder in members else size.joining_epochs for folder in folders}
    steps = " or ".join(str(count * size.fitting_steps) for count in sorted(set(epochs.values())))
    with stage("personalise", f"{steps} steps per site, encoder frozen, loss weights searched for"):
        for folder in folders:
            personalise(
                folder,
                run,
                run / PERSONALISED / folder.name,
                epochs=epochs[folder],
                epoch_length=size.fitting_steps,
                search=True,
                # new heads gain nothing from other loss weights before they have learnt something, and so few steps
                # allow only a few moves of the search
                overrides={
                    "search_start": epochs[folder] * size.fitting_steps // 4,
                    "search_interval": 2,
                    "search_learning_rate": 0.05,
                    "learning_rate": fitting_rate,
                    "registration_lr": registration,
                    "val_interval": epochs[folder] + 1,
                },
                seed=seed,
            )

    with stage("evaluate", f"{size.test} held-out scans per site"):
        summary = evaluate(run)

    with stage("report", str(report)):
        write_report(run, evaluation, report, title=f"FedSR demo: simulated sites, from {begin}")
    print("\n".join([*summary_lines(summary), *comparison_lines(evaluation)]))
    print(f"report: {report.absolute()}")
    return report


@contextmanager
def stage(name: str, what: str) -> Iterator[None]:
    """Print what was done and how long it took; the log says what begins."""
    logger.info("%s: %s", name, what)
    started = time.perf_counter()
    yield
    print(f"{name:<12}{time.perf_counter() - started:5.0f} s   {what}", flush=True)
