"""Batches of several tasks: every row once, whatever the number of ranks and workers and whenever a run is interrupted."""

import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_data import LoaderWithoutProcesses, drawing, image_folder, text_stream, text_table

from showo_hf.training.data.loader import StepLoader, TaskData, merge_states
from showo_hf.training.data.sources import DataSource


def named(examples):
    """What identifies the examples of a batch."""
    return {task: [(one.key, one.noise_seed) for one in of_task] for task, of_task in examples.items()}


def of_texts(examples):
    """The texts of a batch."""
    return [one.text for one in examples["lm"]]


def failing(examples):
    raise ValueError("the collate function fails")


def load(sources, steps, *, rows=2, ranks=1, workers=0, state=None, loader=LoaderWithoutProcesses):
    """The examples of each step on all ranks, with what was broken, and the merged state after the last."""
    found: list[list] = [[] for _ in range(steps)]
    states, broken = [], {}
    for rank in range(ranks):
        made = loader(
            {"lm": TaskData(tuple(sources), rows)},
            named,
            seed=3,
            rank=rank,
            world_size=ranks,
            num_workers=workers,
            state=state,
        )
        for of_step, (batch, _) in zip(found, made, strict=False):
            of_step += batch["lm"]
        states.append(made.state)
        broken |= made.broken.reasons
    return found, json.loads(json.dumps(merge_states(states))), broken


geometries = st.tuples(st.integers(1, 3), st.integers(0, 3), st.integers(1, 3), st.integers(1, 6))


@given(
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=7),
    block=st.integers(1, 8),
    table=st.integers(0, 9),
    phases=st.lists(geometries, min_size=1, max_size=4),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_each_row_once_an_epoch_through_interruptions_with_other_geometries(sizes, block, table, phases, data):
    rows = [(shard, row) for shard, size in enumerate(sizes) for row in range(size)]
    broken = data.draw(st.sets(st.sampled_from(rows), max_size=2))
    sources = [text_stream(sizes, broken)]
    if table:
        sources.append(text_table(table, {0}, weight=0.5))
    ranks, workers, per_rank, _ = phases[0]
    first = LoaderWithoutProcesses(
        {"lm": TaskData(tuple(sources), per_rank)}, named, seed=3, world_size=ranks, num_workers=workers
    ).first_state()
    for source in first["tasks"]["lm"]["sources"]:
        source["block"] = block
    state, seen, steps_seen, all_broken = first, Counter(), [], {}
    for ranks, workers, per_rank, steps in phases:
        found, after, of_phase = load(sources, steps, rows=per_rank, ranks=ranks, workers=workers, state=state)
        steps_seen += [(ranks * per_rank, step) for step in found]
        seen.update(itertools.chain(*found))
        all_broken |= of_phase
        state = after

    # The same rows, one at a time, without an interruption.
    total = sum(count for count, _ in steps_seen)
    single, last, single_broken = load(sources, total, rows=1, state=first)
    start = 0
    for count, step in steps_seen:
        assert sorted(step) == sorted(itertools.chain(*single[start : start + count]))
        start += count
    assert all_broken == single_broken
    for one, other in zip(state["tasks"]["lm"]["sources"], last["tasks"]["lm"]["sources"], strict=True):
        assert one["counts"] == other["counts"]

    # Each stream gives each of its rows once an epoch.
    keys = Counter(key for key, _ in seen.elements())
    assert len(seen) == sum(seen.values())  # no two rows have the same noise
    streams = state["tasks"]["lm"]["sources"][0]["streams"]
    for stream, count in enumerate(state["tasks"]["lm"]["sources"][0]["counts"]):
        own = [(shard, row) for shard, row in rows if shard % streams == stream]
        whole, rest = divmod(count, len(own))
        times = Counter(keys[f"stream shard {shard} row {row}"] for shard, row in own if (shard, row) not in broken)
        assert set(times) <= {whole, whole + 1}
        unseen = sum((shard, row) in broken for shard, row in own)
        assert rest - unseen <= times[whole + 1] <= rest
    for source, size in [(1, table)] if table else []:
        whole, rest = divmod(state["tasks"]["lm"]["sources"][source]["counts"][0], size)
        times = [keys[f"table row {row}"] for row in range(1, size)]
        assert all(whole <= count <= whole + 1 for count in times)
        assert rest - 1 <= sum(count - whole for count in times) <= rest


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_step_has_the_same_rows_on_one_rank_and_on_several(ranks):
    sources = [text_stream([3, 4, 2, 5, 3, 3, 4, 2]), text_table(11, weight=2)]
    together, *_ = load(sources, 12, rows=4)
    apart, *_ = load(sources, 12, rows=4 // ranks, ranks=ranks)
    assert [sorted(step) for step in apart] == [sorted(step) for step in together]
    assert all(len(step) == 4 for step in apart)


def test_ranks_and_workers_read_only_their_own_shards():
    sizes = [4] * 8
    opened = text_stream(sizes)
    read = []
    for rank in range(2):
        loader = LoaderWithoutProcesses(
            {"lm": TaskData((opened,), 4)}, named, seed=0, rank=rank, world_size=2, num_workers=2
        )
        for number, (batch, _) in zip(range(8), loader, strict=False):
            read += [(key.split(" row")[0], (rank, number % 2)) for key, _ in batch["lm"]]
        assert len(loader.state["tasks"]["lm"]["sources"][0]["cursors"]) == 4
    readers = {shard: {who for name, who in read if name == shard} for shard, _ in read}
    assert len(readers) == 8
    assert all(len(who) == 1 for who in readers.values())


def test_states_follow_the_batches_that_were_taken_and_not_those_prepared(tmp_path):
    folder = image_folder(tmp_path / "images", 5)
    data = {"t2i": TaskData((DataSource(str(folder)),), 2)}
    loader = StepLoader(data, named, seed=1, prefetch=4)
    taken = list(itertools.islice(loader, 7))
    taken += itertools.islice(loader, 2)  # a second loop goes on after the first
    for number, (_, state) in enumerate(taken[:7]):
        assert state["tasks"]["t2i"]["row"] == 2 * (number + 1)
        resumed = StepLoader(data, named, seed=1, state=json.loads(json.dumps(state)))
        assert list(itertools.islice(resumed, 2)) == taken[number + 1 : number + 3]


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_give_the_rows_of_the_thread(tmp_path, workers):
    folder = image_folder(tmp_path / "images", 5)
    sources = (DataSource(str(folder)),)
    data = {"t2i": TaskData(sources, 2), "mmu": TaskData(sources, 1)}
    expected = [batch for batch, _ in itertools.islice(StepLoader(data, named, seed=1), 6)]
    loader = StepLoader(data, named, seed=1, num_workers=workers)
    found = list(itertools.islice(loader, 4))
    assert [batch for batch, _ in found] == expected[:4]
    resumed = StepLoader(data, named, seed=1, num_workers=workers, state=found[-1][1])
    assert [batch for batch, _ in itertools.islice(resumed, 2)] == expected[4:]


@pytest.mark.parametrize("workers", [0, 2])
def test_streams_resume_exactly_with_processes(workers):
    sources = [text_stream([3, 4, 2, 5])]
    whole, *_ = load(sources, 12, workers=workers, loader=StepLoader)
    first, state, _ = load(sources, 5, workers=workers, loader=StepLoader)
    second, *_ = load(sources, 7, workers=workers, state=state, loader=StepLoader)
    assert first + second == whole


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_worker_reaches_the_consumer_with_its_message(workers):
    loader = StepLoader({"lm": TaskData((text_table(3),), 1)}, failing, seed=0, num_workers=workers)
    with pytest.raises(ValueError, match="the collate function fails") as caught:
        next(iter(loader))
    assert str(caught.value) == "the collate function fails"
    assert any("in failing" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_samples_are_counted_named_and_limited(tmp_path, workers):
    folder = image_folder(tmp_path / "images", 6)
    for number in (1, 4):
        (folder / f"{number}.png").write_bytes(b"no image")
    data = {"t2i": TaskData((DataSource(str(folder)),), 3)}
    loader = StepLoader(data, named, seed=0, num_workers=workers)
    batches = [batch["t2i"] for batch, _ in itertools.islice(loader, 6)]  # three epochs
    assert sum(map(len, batches)) == 12
    assert loader.broken.count == 2
    assert sorted(key.split(" row ")[1] for key in loader.broken.keys) == ["1 (1.png)", "4 (4.png)"]
    with pytest.raises(ValueError, match=r"`max_broken` allows 1 .*row \d \(\d.png\): .*cannot be read"):
        list(itertools.islice(StepLoader(data, named, seed=0, num_workers=workers, max_broken=1), 6))
    resumed = StepLoader(data, named, seed=0, state=loader.state)
    assert resumed.broken.count == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_lines_are_counted_and_named(tmp_path, workers):
    """A tokenizer takes the texts of all others."""
    lines = [
        '{"text": "a"}',
        "no JSON",
        "[1, 2]",
        '{"text": "\\ud800"}',
        '{"text": "b"}',
        '{"text": "\\ud83d\\ude00"}',
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    loader = StepLoader(
        {"lm": TaskData((DataSource(str(tmp_path / "rows.jsonl")),), 3)}, of_texts, seed=0, num_workers=workers
    )
    texts = [text for batch, _ in itertools.islice(loader, 2) for text in batch]
    assert sorted(texts) == ["a", "b", "😀"]
    assert sorted(key.split(" row ")[1] for key in loader.broken.keys) == ["1", "2", "3"]
    reasons = " ".join(loader.broken.reasons.values())
    assert "row 1 must be a JSON object" in reasons and "half of a surrogate pair in '\\ud800'" in reasons


def test_data_of_which_nothing_can_be_read_ends_the_loop(tmp_path, capsys):
    """Fewer samples than `max_broken`: without this a run would end well, and have trained nothing."""
    folder = image_folder(tmp_path / "images", 3)
    for number in range(3):
        (folder / f"{number}.png").write_bytes(b"no image")
    loader = StepLoader({"t2i": TaskData((DataSource(str(folder)),), 2)}, named, seed=0)
    with pytest.raises(ValueError, match=r"`data` has no sample for t2i that can be read.*\d.png"):
        list(itertools.islice(loader, 4))
    left_out = [line for line in capsys.readouterr().err.splitlines() if line.startswith("showo-hf: left out: ")]
    assert len(left_out) == 3
    drawing(0).save(folder / "0.png")
    loader = StepLoader({"t2i": TaskData((DataSource(str(folder)),), 2)}, named, seed=0)
    assert sum(len(batch["t2i"]) for batch, _ in itertools.islice(loader, 6)) == 4


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_of_which_nothing_can_be_read_ends_the_loop(workers):
    """It has fewer rows than `max_broken`, and nobody knows how many."""
    broken = {(0, 0), (0, 1), (1, 0)}
    loader = StepLoader(
        {"lm": TaskData((text_stream([2, 1], broken),), 2)}, named, seed=0, num_workers=workers, max_broken=20
    )
    with pytest.raises(
        ValueError, match=r"`data` had 2\d rows for lm in succession that cannot be read.*stream shard"
    ):
        list(itertools.islice(loader, 100))
    mostly = text_stream([2, 1], broken - {(0, 1)})
    loader = StepLoader({"lm": TaskData((mostly,), 2)}, named, seed=0, num_workers=workers, max_broken=20)
    assert sum(len(batch["lm"]) for batch, _ in itertools.islice(loader, 60)) > 20


def test_threads_end_with_the_loop():
    loader = StepLoader({"lm": TaskData((text_table(3),), 1)}, named, seed=0)
    for _ in loader:
        assert any("step-loader" in thread.name for thread in threading.enumerate())
        break
    assert not any("step-loader" in thread.name for thread in threading.enumerate())


ENDLESS = """
    import signal
    import sys
    # A shell that starts the tests in the background leaves SIGINT ignored, and a child inherits that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.path[:0] = {paths!r}
    from small_data import text_table
    from showo_hf.training.data.loader import StepLoader, TaskData

    def keys(examples):
        return [one.key for one in examples["lm"]]

    kept = iter(StepLoader({{"lm": TaskData((text_table(3),), 1)}}, keys, seed=0, num_workers={workers}))
    next(kept)
    print("started", flush=True)
    {end}
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("end", ["exit", "error", "interrupt"])
def test_a_process_ends_while_a_loop_is_open(workers, end):
    code = {"exit": "pass", "error": "raise OSError('end')", "interrupt": "for batch in kept: pass"}[end]
    script = textwrap.dedent(ENDLESS).format(paths=[str(Path(__file__).parent)], workers=workers, end=code)
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        assert process.stdout.readline() == b"started\n"
        if end == "interrupt":
            time.sleep(0.5)
            os.killpg(process.pid, signal.SIGINT)
        code = process.wait(timeout=20)
    finally:
        process.kill()
        _, printed = process.communicate()
    assert code == {"exit": 0, "error": 1, "interrupt": -signal.SIGINT}[end], printed.decode()
    assert ("KeyboardInterrupt" in printed.decode()) == (end == "interrupt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 1}, "`rank` must be less than `world_size`"),
        ({"world_size": 0}, "`world_size` must be an integer of at least 1"),
        ({"num_workers": -1}, "`num_workers`"),
        ({"prefetch": 0}, "`prefetch`"),
        ({"tasks": {}}, "`tasks` must hold at least one task"),
        ({"seed": 1}, "`seed` must equal the saved position's, 0, got 1"),
        (
            {"tasks": {"mmu": TaskData((text_table(3),), 1)}},
            "`tasks` must be those of the saved position, lm, got mmu",
        ),
        (
            {"tasks": {"lm": TaskData((text_table(4),), 1)}},
            r"They had \[3\] rows or shards, and now have \[4\]: table",
        ),
    ],
)
def test_arguments_and_states_that_do_not_fit_are_refused(change, message):
    options = {"tasks": {"lm": TaskData((text_table(3),), 1)}, "seed": 0}
    options["state"] = StepLoader(options["tasks"], named, seed=0).state
    with pytest.raises(ValueError, match=message):
        StepLoader(collate=named, **(options | change))


def test_a_rank_counts_its_own_broken_samples_again_after_a_stop():
    """Not those of all ranks, of which `max_broken` allows fewer."""
    data = {"lm": TaskData((text_table(12, broken=range(0, 12, 2)),), 2)}
    loaders = [StepLoader(data, named, seed=0, rank=rank, world_size=2) for rank in range(2)]
    states = [list(itertools.islice(loader, 3))[-1][1] for loader in loaders]
    own = [loader.broken.reasons for loader in loaders]
    assert all(own) and len(own[0] | own[1]) == 6
    for rank in range(2):
        state = merge_states(states, rank, 2)
        resumed = StepLoader(data, named, seed=0, rank=rank, world_size=2, state=state, max_broken=5)
        assert resumed.broken.reasons == own[rank]
    for number in (1, 3):
        assert merge_states(states, 0, number)["broken"] == own[0] | own[1]


def test_states_of_different_steps_are_not_merged():
    loader = StepLoader({"lm": TaskData((text_table(3),), 1)}, named, seed=0)
    first, second = (state for _, state in itertools.islice(loader, 2))
    with pytest.raises(ValueError, match="`states` must be of the same step, but row 1 and row 2 of lm"):
        merge_states([first, second])
    with pytest.raises(ValueError, match="`states` must hold the state of each rank"):
        merge_states([])
