"""A step part by part has the gradient of one batch of all rows."""

import pytest
import tiny
import torch

from showo_hf.models.losses import LOSS_NAMES, scored_positions
from showo_hf.training.losses import LossSums, backward_by_part, step_counts
from showo_hf.training.rows import Part


CONFIG = tiny.showo_config()
WEIGHTS = {"t2i": 1.0, "lm": 0.1, "mmu": 0.5}
CPU = torch.device("cpu")


def part_of(task: str, rows: list[list[int]], labelled: bool = True) -> Part:
    """A part whose ids are its labels."""
    ids = torch.tensor(rows)
    labels = ids.clone() if labelled else torch.full_like(ids, -100)
    counts = {name: int(mask.sum()) for name, mask in scored_positions(ids, labels, CONFIG).items()}
    counts = {name: count for name, count in counts.items() if count}
    return Part(task, [""] * len(rows), input_ids=ids, labels=labels, counts=counts)


def parts() -> dict[str, Part]:
    """Rows of three tasks, of three lengths."""
    image = tiny.image(CONFIG, 1)
    rows = {
        "t2i": [[CONFIG.t2i_token_id, 0, 5, 0, *image], [CONFIG.t2i_token_id, 0, 7, 0, *image]],
        "lm": [[0, 3, 4, 5, 0]],
        "mmu": [[CONFIG.mmu_token_id, *image, 0, 9, 8, 0]],
    }
    made = {task: part_of(task, one) for task, one in rows.items()}
    # Only the answers of the understanding row have labels, as in training.
    made["mmu"].labels[:, : len(image) + 1] = -100
    made["mmu"].counts = {"mmu": 4}
    return made


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    return found


def test_the_gradient_is_that_of_one_padded_batch():
    model, made = tiny.showo().train(), parts()
    width = max(part.input_ids.shape[1] for part in made.values())

    def together(rows: list[torch.Tensor], fill: int) -> torch.Tensor:
        return torch.cat([torch.nn.functional.pad(one, (0, width - one.shape[1]), value=fill) for one in rows])

    output = model(
        together([part.input_ids for part in made.values()], CONFIG.pad_token_id),
        labels=together([part.labels for part in made.values()], -100),
    )
    loss = output.loss_t2i + 0.1 * output.loss_lm + 0.5 * output.loss_mmu
    loss.backward()
    wanted = gradients(model)
    sums = LossSums()
    total = backward_by_part(model, made, step_counts([made]), WEIGHTS, CPU, sums, scale=2)
    found = gradients(model)
    assert found.keys() == wanted.keys() and len(found) > 10
    for name in found:
        torch.testing.assert_close(found[name] / 2, wanted[name], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(total / 2, loss.detach())
    assert not total.requires_grad
    means = sums.means()
    assert set(means) == {(name, name) for name in LOSS_NAMES}
    for (name, _), mean in means.items():
        assert mean == pytest.approx(getattr(output, f"loss_{name}").item())


def test_accumulated_batches_count_by_their_labels():
    """Two calls with the counts of both add up to one call with all rows."""
    model, image = tiny.showo().train(), tiny.image(CONFIG, 1)
    texts = [[0, 3, 4, 5, 0, 6], [0, 9, 8, 7, 0, 1]]
    prompt = [[CONFIG.t2i_token_id, 0, 5, 0, *image]]
    backward_by_part(
        model,
        {"lm": part_of("lm", texts), "t2i": part_of("t2i", prompt)},
        {("lm", "lm"): 10, ("t2i", "t2i"): len(image)},
        WEIGHTS,
        CPU,
        LossSums(),
    )
    wanted = gradients(model)
    halves = [{"lm": part_of("lm", texts[:1]), "t2i": part_of("t2i", prompt)}, {"lm": part_of("lm", texts[1:])}]
    for half in halves:
        backward_by_part(model, half, step_counts(halves), WEIGHTS, CPU, LossSums())
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-6)


def test_each_part_has_a_backward_pass_even_without_labels():
    model, made = tiny.showo().train(), parts()
    made["lm"] = part_of("lm", [[0, 3, 4, 5, 0]], labelled=False)
    seen, unsynced = [], []

    def backward(loss):
        seen.append(loss.item())
        loss.backward()

    class NoSync:
        def __enter__(self):
            unsynced.append(len(seen))

        def __exit__(self, *error):
            pass

    sums = LossSums()
    total = backward_by_part(model, made, step_counts([made]), WEIGHTS, CPU, sums, backward=backward, no_sync=NoSync)
    assert len(seen) == 3 and seen[1] == 0.0 and set(sums.means()) == {("t2i", "t2i"), ("mmu", "mmu")}
    assert unsynced == [0, 1]  # gradients are reduced in the last part's backward pass
    assert sum(seen) == pytest.approx(total.item())
