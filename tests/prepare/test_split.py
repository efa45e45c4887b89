from __future__ import annotations

from pathlib import Path

import pytest

from fedsr_monai.errors import UserError
from fedsr_monai.prepare.sources import Source
from fedsr_monai.prepare.split import split


def people(count: int, labelled: int, visits: int = 2) -> list[Source]:
    return [
        Source(f"p{n}_v{v}", f"p{n}", Path(f"p{n}_v{v}.nii.gz"), label=Path("l.nii.gz") if n < labelled else None)
        for n in range(count)
        for v in range(visits)
    ]


@pytest.mark.parametrize("seed", range(10))
def test_visits_of_one_person_stay_together(seed):
    sources = people(9, 6)
    sections = split(sources, seed=seed)
    for person in {source.person for source in sources}:
        assert len({sections[s.name] for s in sources if s.person == person}) == 1
    count = {section: list(sections.values()).count(section) // 2 for section in ("training", "validation", "test")}
    assert count == {"training": 5, "validation": 1, "test": 3}
    assert all(int(name[1]) < 6 for name, section in sections.items() if section != "training")  # only they have labels


def test_the_seed_decides_and_more_people_change_nobodys_position_in_the_order():
    few, many = (split(people(n, n), 1, 2, seed=4) for n in (6, 7))
    assert few == split(people(6, 6), 1, 2, seed=4) and few != split(people(6, 6), 1, 2, seed=5)
    assert sum(few[name] != many[name] for name in few) <= 4  # two people at most, where the seventh pushed in


def test_an_unlabelled_visit_of_a_test_person_is_left_out():
    sources = people(2, 1)
    sources[1] = Source("p0_v1", "p0", Path("x"))
    assert split(sources, 0, 1) == {"p0_v0": "test", "p0_v1": "left out", "p1_v0": "training", "p1_v1": "training"}


def test_whoever_the_atlas_shows_trains():
    for seed in range(5):
        sections = split(people(3, 3), 1, 1, seed, training=["p1"])
        assert sections["p1_v0"] == sections["p1_v1"] == "training"


def test_one_labelled_person_is_for_the_test_and_without_labels_all_train():
    assert sorted(split(people(2, 1)).values()) == ["test", "test", "training", "training"]
    assert set(split(people(3, 0)).values()) == {"training"}


@pytest.mark.parametrize(
    ("validation", "test", "found"),
    [
        (2, 2, "3 people with labels (beside the atlas)"),
        (1, 2, "3 people"),
        (-1, 2, "3 people with labels (beside the atlas)"),
    ],
)  # fmt: skip
def test_what_cannot_be_split(validation, test, found):
    with pytest.raises(UserError) as caught:
        split(people(3, 3), validation, test)
    assert (caught.value.where, caught.value.found) == (f"--validation {validation} --test {test}", found)
