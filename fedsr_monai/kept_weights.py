"""What a site keeps of a training: the trained weights, those that it began with, or the mean of both; chosen without labels of its scans."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fedsr_monai.evaluation.head_agreement import atlas_dice, head_agreement
from fedsr_monai.evaluation.run import SiteModel
from fedsr_monai.files import is_there, write_json
from fedsr_monai.handlers import save_checkpoint
from fedsr_monai.networks.weights import TRAINED_PREFIXES, read_weights
from fedsr_monai.progress import say

# Measured (docs/method.md): where the atlas has other borders than the weights, training raised the agreement by 0.046 to 0.072 and the Dice by 0.025 to
# 0.06; where it has the same, the agreement moved by -0.004 to 0.007 and the Dice by -0.010 to 0.002, in no order.
LEAST_GAIN = 0.01
# Dice of the labels of a site's atlas and the segmentation of its image, from which on weights draw the borders of that atlas already.
# Measured (docs/method.md): 0.866 where both follow one protocol and the atlas is a real scan, 0.77 to 0.84 where they follow two.
SAME_BORDERS = 0.85


def keep_better(model: SiteModel, out: Path, began: Path, guard: bool, of_run: bool) -> None:
    """Leave in `model` what a training ended with, the mean of that and of what it began with, or the latter; see `personalise`.

    There is nothing to choose if it did not begin with a whole network: encoder, SA features and both heads. Otherwise it writes
    `agreement.json`, and `trained.pt` where the trained weights are not taken.

    Args:
        model: the trained network of the site.
        out: folder of the training.
        began: the weights that training, or the run before it, began with.
        guard: False takes the trained weights in any case.
        of_run: the weights began with a run: they never stay as they were.
    """
    first = read_weights(began)
    if not all(any(key.startswith(part) for key in first) for part in TRAINED_PREFIXES):
        return
    spare, between = out / "trained.pt", out / "mean.pt"
    if is_there(spare):  # of an earlier call
        save_checkpoint(read_weights(spare), model.weights)
    if not guard:
        spare.unlink(missing_ok=True)
        return
    trained, start = read_weights(model.weights), replace(model, weights=began)
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
    if kept == "trained":
        spare.unlink(missing_ok=True)
    else:
        save_checkpoint(trained, spare)
        save_checkpoint(choices[kept], model.weights)
    why = {
        "trained": "",
        "mean": "; the borders of the site's atlas were known before, so that the mean of both is taken",
        "start": "; the weights fitted this site already, and stay as they were",
    }
    others = "" if kept == "trained" else f" (those that were trained are in {spare}; --no_guard takes them)"
    words = (
        f"{model.site.name}: the two heads agree at a Dice of {before:.3f} before the training and {after:.3f} after it"
    )
    say(words + why[kept] + others)
