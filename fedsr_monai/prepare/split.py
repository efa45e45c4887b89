"""The split of scans into training, validation and test: by person, so that all scans of a person are in the same section."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from fedsr_monai.errors import UserError
from fedsr_monai.prepare.sources import Source

LEFT_OUT = "left out"


def split(
    sources: Sequence[Source],
    validation: int | None = None,
    test: int | None = None,
    seed: int = 0,
    training: Sequence[str] = (),
) -> dict[str, str]:
    """Return the section of each scan by its name: training, validation, test, or "left out".

    The order of people depends only on `seed` and their names, so that adding a person does not reorder the others.
    People with labelled scans fill test and validation: by default up to half of all people, with two in test for each
    one in validation. Everybody else is used for training, without labels. An unlabelled scan of a person in test or
    validation is left out.

    Args:
        sources: the scans.
        validation: number of people to validate on.
        test: number of people to test on.
        seed: seed of the order.
        training: people who must be in training, for example the one whom the atlas shows.

    Raises:
        UserError: fewer people have labels than asked for, or nobody would be left to train on.
    """
    people = sorted(
        {source.person for source in sources}, key=lambda person: hashlib.sha256(f"{seed}:{person}".encode()).digest()
    )
    labelled = [p for p in people if p not in training and any(s.label for s in sources if s.person == p)]
    spare = min(len(labelled), len(people) // 2)
    if validation is None:
        validation = spare // 3 if test is None else max(0, min(len(labelled) - test, len(people) // 2 - test))
    if test is None:
        test = max(0, spare - validation)
    if validation < 0 or test < 0 or validation + test > len(labelled):
        raise UserError(
            f"--validation {validation} --test {test}",
            found=f"{len(labelled)} people with labels (beside the atlas)",
            expected="at least as many as these two together",
            fix="ask for fewer",
        )
    if validation + test >= len(people):
        raise UserError(
            f"--validation {validation} --test {test}",
            found=f"{len(people)} people",
            expected="at least one more, to train on",
            fix="ask for fewer",
        )
    section = dict.fromkeys(labelled[:test], "test") | dict.fromkeys(labelled[test : test + validation], "validation")
    result = {}
    for source in sources:
        own = section.get(source.person, "training")
        result[source.name] = LEFT_OUT if own != "training" and source.label is None else own
    return result
