"""The files of results of `showo-hf caption` and `showo-hf ask`, and the records of several processes."""

import json
from pathlib import Path

import pytest

from showo_hf.commands.errors import UsageError
from showo_hf.commands.results import collect_parts, part_of, resume


OUTPUT = Path("out.jsonl")


def write(path: Path | str, *images: str) -> None:
    Path(path).write_text("".join(f"{json.dumps({'image': image, 'text': 'a.'})}\n" for image in images))


def images_in(path: Path | str) -> list[str]:
    return [json.loads(line)["image"] for line in Path(path).read_text().splitlines()]


def test_the_records_of_all_processes_are_collected_in_order():
    write(OUTPUT, "d.png")
    write(part_of(OUTPUT, 0), "a.png", "c.png")
    write(part_of(OUTPUT, 11), "b.png")
    assert [record["image"] for record in collect_parts(OUTPUT, ["a.png", "b.png", "c.png"])] == [
        "a.png", "b.png", "c.png"
    ]  # fmt: skip
    assert images_in(OUTPUT) == ["d.png", "a.png", "b.png", "c.png"]
    assert [path.name for path in Path().iterdir()] == ["out.jsonl"]


def test_records_of_a_run_that_was_killed_while_it_collected_are_not_written_twice():
    parts = [part_of(OUTPUT, 0), part_of(OUTPUT, 1)]
    write(parts[0], "a.png", "c.png")
    write(parts[1], "b.png")
    kept = {part: part.read_bytes() for part in parts}
    collect_parts(OUTPUT)
    for part, content in kept.items():  # as if the process had ended before it removed them
        part.write_bytes(content)
    with open(parts[1], "a") as file:
        file.write(f"{json.dumps({'image': 'b.png', 'question': 'is it food?', 'text': 'no.'})}\n")
    resume(OUTPUT, ["a.png", "b.png", "c.png"])
    assert images_in(OUTPUT) == ["a.png", "c.png", "b.png", "b.png"]
    assert [path.name for path in Path().iterdir()] == ["out.jsonl"]


def test_files_of_the_user_are_kept():
    own = [".out.jsonl.showo-hf-part-x", ".out.jsonl.showo-hf-part-1.jsonl", ".other.jsonl.showo-hf-part-0"]
    for name in ("out.part-0.jsonl", "out.part-mine.jsonl", *own):
        write(name, "mine.png")
    write(part_of(OUTPUT, 0), "a.png")
    before = set(Path().iterdir()) - {part_of(OUTPUT, 0)}
    assert len(collect_parts(OUTPUT)) == 1
    assert images_in(OUTPUT) == ["a.png"] and set(Path().iterdir()) == before | {OUTPUT}


@pytest.mark.parametrize("collect", [False, True])
@pytest.mark.parametrize("line", ['{"text": "milk"}', '{"image": 3}', "milk"])
def test_a_part_with_another_line_is_one_clear_error_and_stays(collect, line):
    write(OUTPUT, "d.png")
    write(part_of(OUTPUT, 0), "a.png")
    write(part_of(OUTPUT, 1), "b.png")
    with open(part_of(OUTPUT, 1), "a") as file:
        file.write(f"{line}\n")
    before = {path: path.read_bytes() for path in Path().iterdir()}
    with pytest.raises(UsageError, match=r"^`--output` must be .*line 2 of '.out.jsonl.showo-hf-part-1'"):
        resume(OUTPUT, ["a.png"], collect)
    assert {path: path.read_bytes() for path in Path().iterdir()} == before


def test_an_incomplete_last_line_of_a_stopped_process_is_left_out():
    write(part_of(OUTPUT, 0), "a.png", "b.png")
    part_of(OUTPUT, 0).write_bytes(part_of(OUTPUT, 0).read_bytes()[:-5])
    assert [record["image"] for record in resume(OUTPUT, [])] == ["a.png"]
    assert images_in(OUTPUT) == ["a.png"] and not part_of(OUTPUT, 0).exists()
