"""Make the world's model: every step in turn. Run from the repository root:

    python -m recipes.world

A step whose output exists is left out. A training that was stopped goes on from its last checkpoint, so the same command
continues after an interruption. `--list` prints the steps, and `--until STEP` ends after one of them.
"""

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple


class Step(NamedTuple):
    """A command, and the folder that exists when it has ended."""

    name: str
    output: str
    command: str

    @property
    def words(self) -> list[str]:
        """The command with this Python, whatever is on the path."""
        program, *rest = shlex.split(self.command)
        return [sys.executable, *(["-m", "showo_hf_command"] if program == "showo-hf" else []), *rest]


OBJECTS, TOKENIZER = "--objects data/world-objects", "--image-tokenizer checkpoints/world-image-tokenizer"
#: Of rows with many wordings and changes.
CHANGES = "--absent-share 0.25 --requests 0.5 --wordings most --changes 0.7 --talk 0.2 --turns 4"
STEPS = (
    Step("things", "data/world-objects", "python -m recipes.world.objects --output data/world-objects"),
    Step("scenes", "data/world", f"python -m recipes.world.images {OBJECTS} --output data/world"),
    Step(
        "image tokenizer",
        "checkpoints/world-first-image-tokenizer",
        "showo-hf train recipes/world/image_tokenizer.yaml",
    ),
    Step(
        "image tokenizer, its decoder",
        "checkpoints/world-image-tokenizer",
        "showo-hf train recipes/world/image_tokenizer_decoder.yaml",
    ),
    Step(
        "text tokenizer",
        "checkpoints/world-text-tokenizer",
        f"python -m recipes.world.text_tokenizer {OBJECTS} --output checkpoints/world-text-tokenizer",
    ),
    Step(
        "rows",
        "data/world-rows",
        f"python -m recipes.world.rows {OBJECTS} {TOKENIZER} --output data/world-rows --even",
    ),
    Step(
        "untrained model",
        "checkpoints/world-fresh",
        f"python -m recipes.fresh_model {TOKENIZER} --text-tokenizer checkpoints/world-text-tokenizer "
        "--known-words data/world-objects/known_words.json --output checkpoints/world-fresh",
    ),
    Step("transformer, text to image", "checkpoints/world-images", "showo-hf train recipes/world/showo-images.yaml"),
    Step("transformer, all tasks", "checkpoints/world-tasks", "showo-hf train recipes/world/showo.yaml"),
    Step("transformer, all tasks again", "checkpoints/world-again", "showo-hf train recipes/world/showo-again.yaml"),
    Step(
        "new rows, more questions",
        "data/world-rows-again",
        f"python -m recipes.world.rows {OBJECTS} {TOKENIZER} --output data/world-rows-again --even --seed 1 "
        "--questions 8 --wrong-styles 0.05",
    ),
    Step(
        "transformer, more questions",
        "checkpoints/world-questions",
        "showo-hf train recipes/world/showo-questions.yaml",
    ),
    Step(
        "new rows, with checks",
        "data/world-rows-checks",
        f"python -m recipes.world.rows {OBJECTS} {TOKENIZER} --output data/world-rows-checks --even --seed 2 "
        "--questions 2 --checks 2 --wrong-styles 0.05 --t2i 45000 --mmu 60000 --mixed 9000",
    ),
    Step("transformer, checks", "checkpoints/world-checks", "showo-hf train recipes/world/showo-checks.yaml"),
    Step(
        "new rows, in more wordings",
        "data/world-rows-wordings",
        f"python -m recipes.world.rows {OBJECTS} {TOKENIZER} --output data/world-rows-wordings --even --seed 3 "
        "--questions 2 --checks 2 --absent-share 0.25 --wrong-styles 0.05 --requests 0.5 --wordings more --t2i 30000 "
        "--mmu 42000 --mixed 18000",
    ),
    Step(
        "transformer, more wordings", "checkpoints/world-wordings", "showo-hf train recipes/world/showo-wordings.yaml"
    ),
    Step(
        "new rows, more changes",
        "data/world-rows-conversations",
        f"python -m recipes.world.rows {OBJECTS} {TOKENIZER} --output data/world-rows-conversations --even --seed 4 "
        f"--questions 4 --checks 2 {CHANGES} "
        "--t2i 90000 --mmu 50000 --mixed 40000",
    ),
    Step(
        "transformer, embeddings of codes",
        "checkpoints/world-codes",
        "showo-hf train recipes/world/showo-codes.yaml",
    ),
    Step(
        "new rows, more places",
        "data/world-rows-places",
        f"python -m recipes.world.rows {OBJECTS} {TOKENIZER} --output data/world-rows-places --even --seed 5 "
        f"--questions 3 --checks 3 {CHANGES} "
        "--t2i 75000 --mmu 60000 --mixed 20000",
    ),
    Step("transformer, places", "checkpoints/world-places", "showo-hf train recipes/world/showo-places.yaml"),
    Step(
        "scenes of four things",
        "data/world-four",
        f"python -m recipes.world.images {OBJECTS} --output data/world-four --scenes 6000 --four-things 18000",
    ),
    Step(
        "diffusion decoder", "checkpoints/world-image-decoder", "showo-hf train recipes/world/diffusion_decoder.yaml"
    ),
    Step(
        "new rows, with drawn images",
        "data/world-rows-redrawn",
        f"python -m recipes.world.rows {OBJECTS} {TOKENIZER} --output data/world-rows-redrawn --even --seed 6 "
        f"--questions 3 --checks 3 {CHANGES} "
        "--t2i 14000 --mmu 7200 --mixed 4000 --redrawn 0.6 --image-decoder checkpoints/world-image-decoder",
    ),
    Step("transformer, drawn images", "checkpoints/showo-world", "showo-hf train recipes/world/showo-redrawn.yaml"),
    Step(
        "diffusion decoder of half the steps",
        "checkpoints/world-image-decoder-2",
        "showo-hf train recipes/world/diffusion_decoder_distilled.yaml",
    ),
)


def make(steps: tuple[Step, ...], root: Path) -> None:
    """
    Run the steps whose output does not exist in the folder `root`.

    Raises:
        subprocess.CalledProcessError: if one of them fails or is stopped. Those after it are not run.
    """
    for step in steps:
        if (root / step.output).exists():
            print(f"{step.name}: {step.output} exists", flush=True)
            continue
        print(f"{step.name}: {step.command}", flush=True)
        start = time.monotonic()
        subprocess.run(step.words, cwd=root, check=True)
        print(f"{step.name}: {(time.monotonic() - start) / 60:.1f} minutes", flush=True)


def main(arguments: list[str] | None = None) -> int:
    names = [step.name for step in STEPS]
    parser = argparse.ArgumentParser(prog="python -m recipes.world", description="Make the world's model.")
    parser.add_argument("--list", action="store_true", help="print the steps and their commands")
    parser.add_argument(
        "--until",
        choices=names,
        default=names[-1],
        metavar="STEP",
        help=f"the last step to run (default: {names[-1]})",
    )
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(f"{step.name}: {step.command}" for step in STEPS))
        return 0
    try:
        make(STEPS[: names.index(options.until) + 1], Path.cwd())
    except subprocess.CalledProcessError as error:
        return error.returncode
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
