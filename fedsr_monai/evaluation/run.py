"""Evaluate all sites of a run, or one set of weights on several sites."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from fedsr_monai.bundle_path import bundle_path, training_files
from fedsr_monai.checks import check_choice, check_whole_number
from fedsr_monai.device import find_device
from fedsr_monai.errors import UserError, one_line
from fedsr_monai.evaluation.sa_variants import LEARNED, VARIANTS, change_sa
from fedsr_monai.evaluation.site import evaluate_network, has_labels
from fedsr_monai.evaluation.stages import BEFORE, ROUNDS
from fedsr_monai.evaluation.tables import TASKS
from fedsr_monai.files import is_there, read_json
from fedsr_monai.networks import FedSRNet
from fedsr_monai.networks.weights import HEAD_PREFIXES, load_weights, read_weights
from fedsr_monai.progress import say
from fedsr_monai.run_record import network_overrides, read_personalised, read_run, trusted_bundle
from fedsr_monai.sites.check import ensure_fit
from fedsr_monai.sites.contract import SECTIONS
from fedsr_monai.sites.site import Site, load_atlas, load_site, load_sites

PERSONALISED = "personalised"  # folder in a run for the networks that were fitted to a site after the rounds


@dataclass(frozen=True)
class SiteModel:
    """Weights to be measured on a site's scans, and the bundle (and baseline) whose network they belong to."""

    site: Site
    weights: Path
    bundle: Path
    overrides: dict[str, Any] = field(default_factory=dict)
    baseline: str | None = None


def models_of_run(
    run: str | os.PathLike, personalised: bool = True, bundle: str | os.PathLike | None = None
) -> list[SiteModel]:
    """Return the final network of each site of a run: the personalised one if it exists, else that of the last round.

    Sites that joined after the rounds come after the others. The pooled policy's one network is measured on every site.

    Args:
        run: folder of the run.
        personalised: False for the networks of the last round alone.
        bundle: folder of the bundle that the run trains, if it is not one of those that are installed.

    Raises:
        UserError: the run has no network yet, a site folder has moved, or run.json holds values that may not be
            executed.
    """
    run = Path(run)
    record = read_run(run)
    root = trusted_bundle(record.bundle, str(record.path), bundle)
    overrides = network_overrides(record.overrides, root, str(record.path), record.baseline)
    models = {}
    for name, path in record.sites:
        for loaded in load_sites(path):
            weights = run / "sites" / name / "model.pt"
            if not weights.is_file():
                raise UserError(
                    weights,
                    found="no such file",
                    expected="the network of the last round",
                    fix="finish the run with the command that began it",
                )
            models[loaded.name] = SiteModel(loaded, weights, root, overrides, record.baseline)
    for file in sorted((run / PERSONALISED).glob("*/personalised.json")) if personalised else ():
        site, root, overrides = read_personalised(file, bundle)
        loaded = load_site(site)
        models[loaded.name] = SiteModel(loaded, file.parent / "model.pt", root, overrides)
    return list(models.values())


def earlier_models(run: str | os.PathLike, bundle: str | os.PathLike | None = None) -> dict[str, list[SiteModel]]:
    """Return the networks that a run had at earlier stages, for the sites that `models_of_run` returns.

    Args:
        run: folder of the run.
        bundle: see `models_of_run`.

    Returns:
        `before`: the weights that the run began with, if it began with any (`fedsr federate --from_weights`).
        `rounds`: the networks after the last round, if some were personalised afterwards; a site that joined after
        the rounds had the encoder of the federation and the heads that the run began with, and is left out if those
        were random.
    """
    run = Path(run)
    final = models_of_run(run, bundle=bundle)
    stages: dict[str, list[SiteModel]] = {}
    begun_with = read_run(run).initial_weights()
    if begun_with is not None:
        stages[BEFORE] = [replace(model, weights=begun_with) for model in final]
    if any(model.weights.parent.parent.name == PERSONALISED for model in final):
        in_rounds = {model.site.name: model for model in models_of_run(run, personalised=False, bundle=bundle)}
        found = [in_rounds.get(model.site.name) or _joined(model) for model in final]
        stages[ROUNDS] = [model for model in found if model is not None]
    return stages


def _joined(model: SiteModel) -> SiteModel | None:
    """Return the network that a site's personalised training began with; None if its heads were random."""
    path = model.weights.with_name("start.safetensors")
    if not is_there(path) or not any(key.startswith(HEAD_PREFIXES) for key in read_weights(path)):
        return None
    return replace(model, weights=path)


def models_of_sites(folders: Sequence[str | os.PathLike], weights: str | os.PathLike | None = None) -> list[SiteModel]:
    """Return one set of weights for several sites, each with its own atlas; by default the weights of `fedsr_site`.

    Raises:
        UserError: a folder is not a site, or the weights do not exist.
    """
    bundle = bundle_path("fedsr_site")
    weights = Path(weights) if weights is not None else bundle / "models" / "model.pt"
    if not weights.is_file():
        fix = "give the path of a model.pt with --weights"
        raise UserError(weights, found="no such file", expected="weights to measure", fix=fix)
    return [SiteModel(load_site(folder), weights, bundle) for folder in folders]


def load_network(model: SiteModel, device: str | torch.device = "cpu") -> FedSRNet:
    """Build the bundle's network with the given weights and the site's own atlas.

    Raises:
        UserError: the weights belong to another network.
    """
    parser = ConfigParser(ConfigParser.load_config_files(training_files(model.bundle, model.baseline)))
    parser.update({"bundle_root": str(model.bundle), "dataset_dir": str(model.site.root), **model.overrides})
    try:
        network = parser.get_parsed_content("network_def")
    except Exception as error:  # of any type: the values come from a file
        where = f"{model.bundle}: network_def"
        found = f"an error ({one_line(error)[:200]})"
        fix = "correct the overrides in run.json or personalised.json"
        raise UserError(where, found=found, expected="a network", fix=fix) from error
    load_weights(network, model.weights)
    network.set_atlas(*load_atlas(model.site))
    return network.to(device)


def evaluate(
    sources: str | os.PathLike | Sequence[str | os.PathLike],
    out: str | os.PathLike | None = None,
    weights: str | os.PathLike | None = None,
    section: str = "test",
    device: str | torch.device | None = None,
    figures: int = 1,
    progress: bool = True,
    bundle: str | os.PathLike | None = None,
    sa: str = LEARNED,
) -> dict[str, Any]:
    """Measure registration and segmentation on labelled scans, write the tables, and return their summary.

    Given the folder of a run, measures each site's final network on that site's scans, as well as the site's networks
    before and after the rounds (`earlier_models`, in folders of the same names in `out`). Given site folders, measures
    one set of weights on all of them, each with its own atlas.

    Args:
        sources: folder of a run, or one or more site folders.
        out: folder for the tables (metrics.csv, cases.csv, metrics.json); by default evaluation/ in the run's folder.
        weights: checkpoint to measure on site folders; by default the one that comes with the bundle fedsr_site.
        section: training, validation or test.
        device: by default the first GPU, or the CPU where there is none.
        figures: number of scans per site whose volumes are kept for the report's figures.
        progress: whether to show progress, as a bar or in the log.
        bundle: folder of the bundle that the run trains, if it is not one of those that are installed.
        sa: SA features to measure with: as learned, or "permuted", "zero", "atlas" or "site" (`change_sa`), whose
            tables go to sa-<name>/ in the run's evaluation.

    Returns:
        The content of metrics.json: Dice, Jaccard, volume differences (mL, %), HD95 and ASD (mm) by site and task, as
        mean, sd and number of cases; see `fedsr_monai.evaluation.tables.DEFINITIONS`.

    Raises:
        UserError: a folder is neither a run nor a site, no site has a labelled scan in the section, or weights do not fit.

    Examples:
        >>> import fedsr_monai as fm
        >>> summary = fm.evaluate("sites/adult-3t", out="evaluation", progress=False)
        >>> 0 < summary["all"]["tasks"]["segmentation"]["mean"]["dice"]["mean"] < 1
        True
    """
    folders = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
    first = Path(folders[0])
    if (first / "run.json").is_file():
        if len(folders) > 1 or weights:
            raise UserError(
                first,
                found="the folder of a run beside other folders or --weights",
                expected="it alone",
                fix="evaluate runs one by one, or name site folders",
            )
        folder = first / "evaluation" if sa == LEARNED else first / "evaluation" / f"sa-{sa}"
        models, target = models_of_run(first, bundle=bundle), Path(out or folder)
        for stage, earlier in earlier_models(first, bundle).items() if sa == LEARNED else ():
            evaluate_models(earlier, target / stage, section, device, 0, progress, stage)
    elif out is None:
        raise UserError("--out", found="nothing", expected="it for site folders", fix="name a folder for the tables")
    else:
        models, target = models_of_sites(folders, weights), Path(out)
    return evaluate_models(models, target, section, device, figures, progress, sa=sa)


def evaluate_models(
    models: Sequence[SiteModel],
    out: str | os.PathLike,
    section: str = "test",
    device: str | torch.device | None = None,
    figures: int = 1,
    progress: bool = True,
    stage: str = "",
    sa: str = LEARNED,
) -> dict[str, Any]:
    """Measure every model on its site's labelled scans, write the tables to `out`, and return their summary.

    A site without labelled scans in the section, as most hospitals of a federation will be, is named and left out.

    Args:
        models: the models to measure.
        out: evaluation folder.
        section: training, validation or test.
        device: by default the first GPU, or the CPU where there is none.
        figures: number of scans per site whose volumes are kept for the report's figures.
        progress: whether to show progress, as a bar or in the log.
        stage: earlier stage of a run that the models belong to, for the progress display.
        sa: SA features to measure with (`change_sa`).

    Raises:
        UserError: a site violates the contract, no site has a labelled scan in the section, or weights do not fit.
    """
    check_choice("section", section, SECTIONS)
    check_choice("sa", sa, VARIANTS)
    check_whole_number("figures", figures, least=0)
    device = find_device(device)
    out = Path(out)
    ensure_fit(model.site for model in models)
    measurable = [
        model for model in models if has_labels(model.site, section)
    ] or models  # if none can be measured, the first is refused by name
    for model in models:
        if model not in measurable:
            if not stage:  # once, with the final networks
                say(f"fedsr: {model.site.root}: not measured, as it has no labelled scan in '{section}'")
            continue
        network = load_network(model, device)
        change_sa(network.eval(), sa, model.site)
        evaluate_network(network, model.site, section, device, out, figures, progress, stage)
    return read_json(out / "metrics.json", "the summary of an evaluation", "evaluate again")


def summary_lines(summary: dict[str, Any]) -> list[str]:
    """Return one line per site: mean Dice of the unregistered atlas, of the registration and of the segmentation."""
    width = max(len(name) for name in summary["sites"])
    lines = []
    for name, site in summary["sites"].items():
        tasks = ", ".join(f"{task} {_number(site['tasks'][task]['mean']['dice']['mean'])}" for task in TASKS)
        count = next(iter(site["tasks"].values()))["cases"]
        lines.append(f"{name:<{width}}  mean Dice of {count} scan{'s' * (count > 1)}: {tasks}")
    return lines


def _number(value: float | None) -> str:
    """Return a value of metrics.json, where null stands for nan, as text."""
    return "nan" if value is None else f"{value:.3f}"
