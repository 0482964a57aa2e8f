"""What a checkpoint tells about its run before the Trainer is built: positions in the data, state, and progress."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerState

from . import checkpoints


def saved_position(folder: Path) -> list[Any]:
    """The positions in the data of a checkpoint, one of each process that wrote it."""
    file = folder / "position.json"
    positions = checkpoints.read_json(file)
    with checkpoints.loading(file):
        check_positions(positions)
    return positions


def check_positions(positions: Any):
    """Raise `ValueError`, or another error, unless positions have the form of those of `StepLoader`."""
    if not isinstance(positions, list) or not positions:
        raise ValueError("There must be a position for each process.")
    for position in positions:
        numbers = [position["seed"]]
        if not all(isinstance(reason, str) for reason in position["broken"].values()):
            raise ValueError("`broken` must name reasons.")
        for task, rows in position["tasks"].items():
            numbers.append(rows["row"])
            for source in rows["sources"]:
                numbers += [*source["counts"], *(source[name] for name in ("size", "rows_per_step", "workers"))]
                if len(source["counts"]) != source["streams"] or not isinstance(source["cursors"], dict):
                    raise ValueError(f"The streams of {task} have other positions than there are streams.")
            if sum(sum(source["counts"]) for source in rows["sources"]) != rows["row"]:
                raise ValueError(f"The sources of {task} do not add up to row {rows['row']!r:.80}.")
        if not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
            raise ValueError("Seeds, rows and counts must be whole numbers from 0 to 2**63.")


def saved_state(folder: Path) -> TrainerState:
    """The state of transformers' Trainer in a checkpoint. `DamagedCheckpointError` if it is not one."""
    file = folder / "trainer_state.json"
    document = checkpoints.read_json(file)
    with checkpoints.loading(file):
        state = TrainerState(**document)
        if not isinstance(state.log_history, list) or not all(isinstance(row, dict) for row in state.log_history):
            raise ValueError("`log_history` must be a list of mappings.")
        for name in ("global_step", "total_flos", "epoch", "num_input_tokens_seen"):
            checkpoints.check_like(name, getattr(state, name), 0.0)
        if folder.name != f"checkpoint-{state.global_step}":
            raise ValueError(f"`global_step` is {state.global_step}.")
        if state.best_model_checkpoint is not None:
            raise ValueError("`best_model_checkpoint` must be empty.")
    return state


def saved_step(folder: Path) -> int:
    """The step of a checkpoint."""
    return saved_state(folder).global_step


def saved_since(folder: Path, validation: Mapping[str, Any]) -> int:
    """
    How many validations a checkpoint is behind the best one.

    Args:
        validation: the options of the validation now. With others than the checkpoint's there is no best one yet.
    """
    progress = checkpoints.read_json(folder / "trainer.json")
    with checkpoints.loading(folder / "trainer.json"):
        since = int(progress["best"]["since"])
        return since if progress.get("validation", validation) == validation else 0
