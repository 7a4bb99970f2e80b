"""What is concentrated is told, by its place; what happens to everybody, or to nobody in particular, is not."""

from dataclasses import dataclass, replace
from datetime import timedelta

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import snapshots
from lengths import FULL

from kserve import Snapshot, synth
from kserve._census import first_slots
from kserve.snapshots.build import Options, build
from kserve.snapshots.catalog import SNAPSHOT, Catalog
from kserve.snapshots.clusters import People as Sampled
from kserve.snapshots.clusters import Search
from kserve.snapshots.compare import compare
from kserve.snapshots.regions import Regions

N = 100_000
TOPICS = 300
CITIES = 500
DETAILED = 5_000
MANY = 1_000_000 if FULL else 200_000
BROKEN = 12.0  # points


@dataclass(frozen=True)
class People:
    """N profiles with sorted ids; a location or topic of -1 is none. ``networks``: tw for most, gp for 1 in 50."""

    ids: npt.NDArray[np.uint64]
    scores: npt.NDArray[np.float64]
    locations: npt.NDArray[np.int64]
    topics: npt.NDArray[np.int64]
    gp: npt.NDArray[np.bool_]

    @classmethod
    def make(cls) -> "People":
        generator = np.random.default_rng(11)
        cities = np.minimum(generator.zipf(1.3, N) - 1, CITIES - 1)
        return cls(
            np.sort(generator.choice(np.arange(1, 1 << 40, 12_347, dtype=np.uint64), N, replace=False)),
            np.round(generator.uniform(20, 80, N), 2),
            np.where(generator.random(N) < 0.1, -1, cities),
            np.where(generator.random((N, 3)) < 0.4, -1, generator.integers(0, TOPICS, (N, 3))),
            generator.random(N) < 0.02,
        )

    def without(self, gone: npt.NDArray[np.bool_]) -> "People":
        return People(*(getattr(self, name)[~gone] for name in self.__dataclass_fields__))

    def moved(self, moving: npt.NDArray[np.bool_], by: float = BROKEN) -> "People":
        return replace(self, scores=np.round(self.scores + by * moving, 2))

    def snapshot(self, data, later: int = 0) -> Snapshot:
        columns = {
            "profile_id": pa.array(self.ids),
            "score": pa.array(self.scores, mask=np.isnan(self.scores)),
            "location": pa.array([None if i < 0 else place(i) for i in self.locations.tolist()]),
            "topics": pa.array([[f"t{t}" for t in {*row} if t >= 0] for row in self.topics.tolist()]),
            "tw_id": pa.array([f"t{i}" for i in self.ids.tolist()]),
            "gp_id": pa.array([f"g{i}" if gp else None for i, gp in zip(self.ids, self.gp, strict=True)]),
        }
        data.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), data / f"{later}.parquet")
        options = Options(scored_at=snapshots.NOON + timedelta(hours=later))
        catalog = Catalog(data / "out")
        return Snapshot(catalog.folder(build(catalog, data / f"{later}.parquet", options).version) / SNAPSHOT)


def place(city: int) -> str:
    return f"C{city % 7}/R{city % 35}/City {city}"


@pytest.fixture(scope="module")
def people() -> People:
    return People.make()


@pytest.fixture(scope="module")
def old(people, tmp_path_factory) -> Snapshot:
    return people.snapshot(tmp_path_factory.mktemp("old"))


def some(share: float, seed: int = 3) -> npt.NDArray[np.bool_]:
    return np.random.default_rng(seed).random(N) < share


def found(old: Snapshot, new: Snapshot, **options):
    return compare(old, new, **options).clusters


def test_ten_neighbours_among_many_who_left(old, people, tmp_path):
    """0.01 % of the profiles, while 0.2 % go every night."""
    run = slice(54_321, 54_331)
    gone = some(0.002)
    gone[run] = True
    (cluster,) = found(old, people.without(gone).snapshot(tmp_path))
    assert (cluster.event, cluster.dimension) == ("removed", "id range")
    assert cluster.where == f"ids {people.ids[54_321]} to {people.ids[54_330]}"
    assert (cluster.cases, cluster.profiles) == (10, 10.0)
    assert cluster.expected < 0.1
    assert cluster.log10_p < -10


@pytest.mark.parametrize("start", [0, 12_500, 49_995, N - 10])
def test_neighbours_anywhere(old, people, tmp_path, start):
    moving = np.zeros(N, bool)
    moving[start : start + 10] = True
    (cluster,) = found(old, people.moved(moving).snapshot(tmp_path))
    assert (cluster.event, cluster.dimension, cluster.cases) == ("moved", "id range", 10)
    assert cluster.where == f"ids {people.ids[start]} to {people.ids[start + 9]}"


def test_a_shard(old, people, tmp_path):
    shard = people.ids % np.uint64(100) == 7
    (cluster,) = found(old, people.moved((shard & some(0.5)) | some(0.001, 4)).snapshot(tmp_path))
    assert (cluster.event, cluster.dimension, cluster.where) == ("moved", "id shard", "id % 100 = 7")
    assert cluster.profiles == np.count_nonzero(shard)


def test_a_region_is_told_once_as_the_narrowest(old, people, tmp_path):
    """Its country has all of the cases too."""
    lost = people.locations % 35 == 16
    new = replace(people, scores=np.where(lost & some(0.3), np.nan, people.scores)).snapshot(tmp_path)
    (cluster,) = found(old, new)
    assert (cluster.event, cluster.dimension, cluster.where) == ("unscored", "region", "C2/R16")
    assert cluster.profiles == np.count_nonzero(lost)


def test_a_topic(old, people, tmp_path):
    """All who have it lose all their topics."""
    lost = (people.topics == 42).any(axis=1)
    (cluster,) = found(old, replace(people, topics=np.where(lost[:, None], -1, people.topics)).snapshot(tmp_path))
    assert (cluster.event, cluster.dimension, cluster.where) == ("topics", "topic", "t42")
    assert cluster.cases == cluster.profiles == np.count_nonzero(lost)


def test_a_network(old, people, tmp_path):
    new = replace(people, locations=np.where(people.gp & some(0.2), -1, people.locations)).snapshot(tmp_path)
    (cluster,) = found(old, new)
    assert (cluster.event, cluster.dimension, cluster.where) == ("location", "network", "gp")


def test_two_faults_at_once(old, people, tmp_path):
    shard, run = people.ids % np.uint64(64) == 9, np.zeros(N, bool)
    run[70_000:70_100] = True
    first, second = found(old, people.moved(shard | run).snapshot(tmp_path))
    assert (first.where, first.cases) == ("id % 64 = 9", np.count_nonzero(shard))
    assert (second.dimension, second.cases) == ("id range", np.count_nonzero(run & ~shard))


def test_fewer_than_the_least_are_no_cluster(old, people, tmp_path):
    moving = np.zeros(N, bool)
    moving[500:510] = True
    new = people.moved(moving).snapshot(tmp_path)
    assert found(old, new, least=11) == ()
    assert len(found(old, new, least=10)) == 1


def test_what_happens_to_everybody_is_no_cluster(old, people, tmp_path):
    everybody = np.ones(N, bool)
    assert found(old, people.moved(everybody).snapshot(tmp_path)) == ()


@pytest.mark.parametrize("share", [0.0005, 0.02, 0.5])
def test_what_happens_to_some_anywhere_is_no_cluster(old, people, tmp_path, share):
    moved = people.moved(some(share))
    new = replace(
        moved,
        scores=np.where(some(share, 5), np.nan, moved.scores),
        locations=np.where(some(share, 6), -1, people.locations),
        topics=np.where(some(share, 7)[:, None], -1, people.topics),
    ).without(some(share, 8))
    assert found(old, new.snapshot(tmp_path)) == ()


@pytest.mark.parametrize("profiles", [DETAILED, pytest.param(MANY, marks=[pytest.mark.heavy, pytest.mark.drill])])
def test_an_honest_night_has_no_cluster(tmp_path, profiles):
    old, new = (synthetic(tmp_path / str(day), profiles, day) for day in (5, 6))
    figures = compare(old, new)
    assert figures.removed > 0
    assert figures.clusters == ()


def synthetic(folder, profiles: int, day: int) -> Snapshot:
    synth.write(folder / "in", synth.Plan(profiles, day=day, columns="all"))
    catalog = Catalog(folder / "out")
    words = {"topics": folder / "in" / "topics.csv", "topic_edges": folder / "in" / "topic_edges.csv"}
    return Snapshot(catalog.folder(build(catalog, folder / "in", Options(**words)).version) / SNAPSHOT)


class TestSampled:
    """What a sample of the profiles, and of the cases, does to what is found."""

    def search(self, old: Snapshot, sample: int, cases: npt.NDArray[np.uint64], total: int):
        slots = np.random.default_rng(1).permutation(first_slots(old, N))[:sample]
        people = Sampled.of(old, np.sort(slots))
        return Search(old, people, Regions(old.locations())).clusters({"removed": (cases, total)}, 8)

    def test_a_run_of_neighbours_is_found_by_a_tenth_of_the_profiles(self, old, people):
        cases = slots_of(old, people.ids[40_000:40_100])
        (cluster,) = self.search(old, N // 10, cases, len(cases))
        assert (cluster.dimension, cluster.cases) == ("id range", 100)
        assert 30 <= cluster.profiles <= 300

    @pytest.mark.parametrize("seed", range(5))
    def test_what_is_spread_is_not(self, old, people, seed):
        cases = slots_of(old, people.ids[some(0.05, seed)])
        assert self.search(old, N // 10, cases, len(cases)) == ()

    def test_cases_stand_for_all_of_them(self, old, people):
        shard = people.ids[people.ids % np.uint64(10) == 3]
        cases = slots_of(old, shard[some(0.1)[: len(shard)]])
        (cluster,) = self.search(old, N // 10, cases, 10 * len(cases))
        assert (cluster.where, cluster.cases) == ("id % 10 = 3", 10 * len(cases))
        assert cluster.profiles == pytest.approx(len(shard), rel=0.1)


def slots_of(snapshot: Snapshot, ids: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    return np.array([snapshot.core(i)[0] for i in ids.tolist()], dtype=np.uint64)


def test_regions_are_all_prefixes():
    regions = Regions(["US/NY/NYC", "US", "FR/P", "US/NY", "US/NYX"])
    assert set(regions.names) == {"US", "US/NY", "US/NY/NYC", "US/NYX", "FR", "FR/P"}
    totals = dict(zip(regions.names, regions.totals(np.array([7, 1, 2, 3, 4, 5])).tolist(), strict=True))
    assert totals == {"US": 12, "US/NY": 5, "US/NY/NYC": 1, "US/NYX": 5, "FR": 3, "FR/P": 3}
    inside = regions.inside(regions.names.index("US/NY"), np.arange(6, dtype=np.uint32))
    assert inside.tolist() == [False, True, False, False, True, False]
    assert Regions([]).names == ()
