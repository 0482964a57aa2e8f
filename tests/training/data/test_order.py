"""The order of rows: permutations, streams, and who reads what."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from showo_hf.training.data.order import MAX_STREAMS, Place, RowOrder, StreamLayout, permuted, stable_hash


small = st.integers(1, 5)


@given(size=st.integers(1, 3000), seed=st.integers(0, 2**63 - 1))
@settings(max_examples=40, deadline=None)
def test_permuted_is_a_permutation(size, seed):
    assert sorted(permuted(index, size, seed) for index in range(size)) == list(range(size))


def test_permutations_of_few_rows_are_all_drawn_and_equally_often():
    drawn = Counter(tuple(permuted(index, 4, seed) for index in range(4)) for seed in range(6000))
    assert len(drawn) == 24
    assert sum((count - 250) ** 2 / 250 for count in drawn.values()) < 60  # chi-squared, 23 degrees: 1e-5 above 60


def test_permuted_takes_sizes_that_no_memory_holds():
    found = {permuted(index, 10**15, 7) for index in range(1000)}
    assert len(found) == 1000
    assert min(found) < 10**14
    assert max(found) > 9 * 10**14


def test_hashes_do_not_change():
    """A resumed run needs the same numbers in each version of the package."""
    assert stable_hash(3, "t2i", "noise", 0, 0, 5) == 8575301201874832859
    assert stable_hash("ab", "c") != stable_hash("a", "bc")
    assert [permuted(index, 10, 1) for index in range(10)] == [1, 4, 6, 0, 8, 9, 7, 2, 3, 5]


@given(ranks=small, workers=small, rows=small, shards=st.integers(1, 200))
@settings(deadline=None)
def test_each_worker_of_each_rank_has_streams_of_its_own(ranks, workers, rows, shards):
    layout = StreamLayout.of_shards(shards, rows * ranks, ranks, workers)
    assert 1 <= layout.streams <= min(shards, max(MAX_STREAMS, ranks) * workers)
    per_step = rows * ranks
    readers: dict[int, set] = {}
    for row in range(per_step * workers * layout.streams * 2):
        readers.setdefault(layout.stream(row), set()).add((row % ranks, row // per_step % workers))
    assert set(readers) <= set(range(layout.streams))
    if shards >= ranks * workers:
        assert set(readers) == set(range(layout.streams))
        assert all(len(found) == 1 for found in readers.values())


@given(shards=st.integers(1, 100), streams=st.integers(1, 100))
def test_each_shard_belongs_to_one_stream(shards, streams):
    streams = min(shards, streams)
    layout = StreamLayout(streams, 4, 1)
    dealt = [layout.shards_of(stream, shards) for stream in range(streams)]
    assert sorted(sum(dealt, [])) == list(range(shards))
    assert all(dealt)


@given(stop=st.integers(0, 60), workers=small, streams=st.integers(1, 6))
@settings(deadline=None)
def test_positions_count_the_rows_of_a_stream_and_go_on_after_a_stop(stop, workers, streams):
    layouts = [StreamLayout(1, 4, workers), StreamLayout(streams, 4, workers)]
    whole = RowOrder(5, "t2i", [3, 1], layouts)
    places = [whole.next_place() for _ in range(80)]
    for source in (0, 1):
        for stream in range(layouts[source].streams):
            positions = [place.position for place in places if place[:2] == (source, stream)]
            assert positions == list(range(len(positions)))
    first = RowOrder(5, "t2i", [3, 1], layouts)
    for _ in range(stop):
        first.next_place()
    second = RowOrder(5, "t2i", [3, 1], layouts, first.row, first.counts)
    assert [second.next_place() for _ in range(80 - stop)] == places[stop:]


def test_sources_are_mixed_by_their_weights():
    order = RowOrder(0, "t2i", [3, 1, 0.5], [StreamLayout(1, 4, 1)] * 3)
    found = Counter(order.next_place().source for _ in range(9000))
    assert abs(found[0] - 6000) < 250  # five standard deviations are 224
    assert abs(found[1] - 2000) < 250
    assert abs(found[2] - 1000) < 250


def test_noise_seeds_differ_by_seed_task_and_place():
    seeds = {
        RowOrder(seed, task, [1], [StreamLayout(1, 4, 1)]).noise_seed(Place(source, stream, position))
        for seed in (0, 1)
        for task in ("t2i", "mmu")
        for source in (0, 1)
        for stream in (0, 1)
        for position in range(50)
    }
    assert len(seeds) == 800
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62
