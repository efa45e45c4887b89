"""The commands of `fedsr` by name: plain functions, whose signature and docstring are the command's options and help."""

from __future__ import annotations

from collections.abc import Callable

from fedsr_monai.commands.data import check, simulate
from fedsr_monai.commands.demonstration import demo, version
from fedsr_monai.commands.hospitals import export_job, flare_site
from fedsr_monai.commands.labelling import label
from fedsr_monai.commands.measuring import benchmark, pretrain
from fedsr_monai.commands.preparing import prepare
from fedsr_monai.commands.results import evaluate, report, segment
from fedsr_monai.commands.training import federate, personalise

COMMANDS: dict[str, Callable[..., None]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        demo,
        simulate,
        prepare,
        check,
        federate,
        personalise,
        evaluate,
        segment,
        label,
        report,
        export_job,
        flare_site,
        benchmark,
        pretrain,
        version,
    )
}
