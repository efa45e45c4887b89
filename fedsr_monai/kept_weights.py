"""The weights that a site keeps after a training: the trained ones, those that it began with, or the mean of both.

The choice needs no labels of the site's scans. The biases of the segmentation head are then adjusted so that deep grey
matter has the sizes that it has in the site's atlas.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch

from fedsr_monai.device import find_device
from fedsr_monai.evaluation.head_agreement import atlas_dice, head_agreement
from fedsr_monai.evaluation.run import SiteModel, load_network
from fedsr_monai.files import is_there, write_json
from fedsr_monai.handlers import save_checkpoint
from fedsr_monai.labels import LABELS
from fedsr_monai.networks.sizes import BIAS, match_sizes, size_factors
from fedsr_monai.networks.weights import TRAINED_PREFIXES, read_weights
from fedsr_monai.progress import say

# Measured (docs/method.md): where the atlas follows another protocol than the weights, training raised the agreement by
# 0.046 to 0.072 and the Dice by 0.025 to 0.06. Where both follow the same one, the agreement changed by -0.004 to 0.007
# and the Dice by -0.010 to 0.002, with no clear relation between the two.
LEAST_GAIN = 0.01
# Dice between the labels of a site's atlas and the segmentation of its image. From this value on, the weights already
# draw the borders of that atlas. Measured (docs/method.md): 0.866 where weights and atlas follow one protocol and the
# atlas is a real scan, 0.77 to 0.84 where they follow two.
SAME_BORDERS = 0.85
SIZES = "sizes.json"


def keep(model: SiteModel, out: Path, began: Path | None, guard: bool, of_run: bool, sizes: bool) -> None:
    """Write the weights to use after a training to `model.weights`, and the trained ones to `out/trained.pt` if they differ.

    Args:
        model: the trained network of the site.
        out: folder of the training.
        began: the weights that the training, or the run before it, began with; None if they are not known.
        guard: choose between the trained weights, those in `began` and the mean of both, if `began` holds a whole
            network (`choose`).
        of_run: the training followed a run; then the weights in `began` are never kept as they are.
        sizes: match the sizes of deep grey matter on the site's atlas (`match_sizes`) and record them in
            `out/sizes.json`.
    """
    spare = out / "trained.pt"
    if is_there(spare):  # of an earlier call
        save_checkpoint(read_weights(spare), model.weights)
    trained = read_weights(model.weights)
    kept = trained if began is None or not guard else choose(model, out, trained, began, of_run)
    (out / SIZES).unlink(missing_ok=True)  # of an earlier call
    if sizes:
        kept = with_matched_sizes(model, out, kept)
    if kept is trained:
        spare.unlink(missing_ok=True)
    else:
        save_checkpoint(trained, spare)
        save_checkpoint(kept, model.weights)


def choose(
    model: SiteModel, out: Path, trained: dict[str, torch.Tensor], began: Path, of_run: bool
) -> dict[str, torch.Tensor]:
    """Return the weights that a training ended with, those that it began with, or the mean of both; see `personalise`.

    If the training did not begin with a whole network (encoder, SA features and both heads), there is nothing to
    choose, and the trained weights are returned. Otherwise the reasons are written to `agreement.json`.
    """
    first = read_weights(began)
    if not all(any(key.startswith(part) for key in first) for part in TRAINED_PREFIXES):
        return trained
    between, start = out / "mean.pt", replace(model, weights=began)
    first = {key: value for key, value in first.items() if key in trained and key.startswith(TRAINED_PREFIXES)}
    choices = {"trained": trained, "start": trained | first}
    before, after = head_agreement(start), head_agreement(model)
    facts = {"atlas_dice": atlas_dice(start), "before": before, "after": after, "least_gain": LEAST_GAIN}
    kept = "trained"
    if facts["atlas_dice"] >= SAME_BORDERS:
        middle = {key: value.lerp(trained[key], 0.5) for key, value in first.items() if value.is_floating_point()}
        choices["mean"] = trained | middle
        save_checkpoint(choices["mean"], between)
        facts["mean"] = head_agreement(replace(model, weights=between))
        between.unlink()
        if facts["mean"] >= min(before, after):  # else the training went so far that there is nothing good half-way
            kept, after = "mean", facts["mean"]
    if not of_run and after - before < LEAST_GAIN:
        kept = "start"
    write_json(out / "agreement.json", facts | {"kept": kept})
    why = {
        "trained": "",
        "mean": "; the borders of the site's atlas were known before, so that the mean of both is taken",
        "start": "; the weights fitted this site already, and stay as they were",
    }
    others = (
        "" if kept == "trained" else f" (those that were trained are in {out / 'trained.pt'}; --no_guard takes them)"
    )
    words = (
        f"{model.site.name}: the two heads agree at a Dice of {before:.3f} before the training and {after:.3f} after it"
    )
    say(words + why[kept] + others)
    return choices[kept]


def with_matched_sizes(model: SiteModel, out: Path, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return `weights` after `match_sizes` and write `out/sizes.json`; return `weights` itself if nothing changes."""
    network = load_network(model, find_device(None)).eval()
    network.load_state_dict(weights)
    with torch.no_grad():
        logits, label = network(network.atlas_image)[0], network.atlas_label[0, 0]
        biases = match_sizes(network)
    if not biases.any():
        return weights
    before, after = (size_factors(found, label) for found in (logits, logits + biases[:, None, None, None]))
    rows = {
        name: {"before": float(before[k]), "after": float(after[k]), "bias": float(biases[k])}
        for k, name in LABELS.items()
        if biases[k] != 0
    }
    file = out / SIZES
    write_json(file, rows)
    worst = max(rows, key=lambda name: abs(math.log(rows[name]["before"])))
    found = f"{worst} {rows[worst]['before']:.2f}, now {rows[worst]['after']:.2f}"
    say(
        f"{model.site.name}: deep grey matter has the sizes of the site's atlas on its image ({found}; all are in {file})"
    )
    return weights | {BIAS: network.state_dict()[BIAS].cpu()}
