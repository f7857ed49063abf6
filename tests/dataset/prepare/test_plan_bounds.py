"""Which sample goes into which shard: the same in every version, as stored data sets are recognised by it."""

from __future__ import annotations

import itertools

import pytest

from stoker.dataset.prepare.entries import Entries, Listing
from stoker.dataset.prepare.plan import Options, digest, plan_split


@pytest.fixture
def entries() -> Entries:
    """Ten samples of 45,000 bytes, 65,480 with what a tar adds."""
    listing = Listing()
    for number in range(10):
        listing.add(f"c/{number}.jpg", number % 2, 1000 * number, "s")
    return listing.entries()


def test_the_plan_of_a_split_is_the_same_in_every_version(entries: Entries) -> None:
    plan = plan_split("train", entries, Options(seed=3, shard_mb=0.02))
    assert plan.order.tolist() == [0, 5, 1, 6, 3, 8, 4, 9, 7, 2]
    assert plan.cuts.tolist() == [0, 2, 5, 7, 10]
    assert plan.shard_of().tolist() == [0, 1, 3, 1, 2, 0, 1, 3, 2, 3]
    assert [shard.name for shard in plan.shards()] == [f"train/00000{number}" for number in range(4)]


@pytest.mark.parametrize(("shard_mb", "shards"), [(0.065480, 1), (0.065479, 2), (0.032740, 2), (0.032739, 3)])
def test_a_shard_has_its_size_with_the_headers_of_the_tar(entries: Entries, shard_mb: float, shards: int) -> None:
    assert len(plan_split("train", entries, Options(shuffles=False, shard_mb=shard_mb))) == shards


@pytest.mark.parametrize(("most", "shards"), [(10, 1), (9, 2), (5, 2), (4, 3), (1, 10)])
def test_no_shard_has_more_samples_than_allowed_and_none_is_empty(entries: Entries, most: int, shards: int) -> None:
    cuts = plan_split("train", entries, Options(shuffles=False, shard_samples=most)).cuts.tolist()
    sizes = [stop - start for start, stop in itertools.pairwise(cuts)]
    assert (len(sizes), max(sizes) <= most, max(sizes) - min(sizes) <= 1) == (shards, True, True)


@pytest.mark.parametrize("shard_mb", [0.0, 1e-9, 0.000001, 0.000002])
def test_the_smallest_shards_have_one_sample_each(entries: Entries, shard_mb: float) -> None:
    assert len(plan_split("train", entries, Options(shard_mb=shard_mb))) == 10


def test_the_defaults_are_those_that_stored_data_sets_were_made_with() -> None:
    assert Options(seed=3).choices == (3, 64.0, None, True, False, True, "marked", "keep", None, 90)
    assert Options().image_choices == (True, "marked", "keep", None, 90)
    assert Options(background="#ffffff").image_choices == (True, "marked", "keep", None, 90, "#ffffff")
    assert (Options().on_bad, Options().copies, Options().validation_fraction, Options().limit) == (
        "fail",
        False,
        None,
        None,
    )


def test_a_digest_is_the_same_in_every_version() -> None:
    found = digest("a", 1, [2, {"b": None}])
    assert found == "f607d6e59c180fee3195373a578988b8d561296e1bc2140064b794f207436b70"
