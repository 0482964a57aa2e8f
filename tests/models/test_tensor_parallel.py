"""`tp_plan="auto"`: two processes compute what one process computes."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch

from showo_hf import EMBEDDED_MODEL, ShowoForCausalLM


# Each process loads its part of each model. Process 0 saves the results.
WORKER = """
import os
import sys

rank, port, output, *folders = sys.argv[1:]
os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)

import torch
import torch.distributed as dist
from transformers.distributed import DistributedConfig

from showo_hf import ShowoForCausalLM

dist.init_process_group("gloo")
found = []
for folder in folders:
    model = ShowoForCausalLM.from_pretrained(folder, distributed_config=DistributedConfig(tp_plan="auto"))
    for weight in (model.model.layers[0].self_attn.v_proj.weight, model.lm_head.weight):
        assert weight.to_local().shape[0] < weight.shape[0]
    ids = torch.arange(20, 60)[None]
    with torch.no_grad():
        logits = [model(ids).logits, model(ids, codebook_only=True).logits]
    found.append([*logits, model.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None)])
if rank == "0":
    torch.save(found, output)
dist.destroy_process_group()
"""


def free_port() -> str:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return str(server.getsockname()[1])


def run_two_processes(folders: list[str], output: Path) -> list[list[torch.Tensor]]:
    """Logits, image logits and new ids of each model, computed by two processes together."""
    port = free_port()
    commands = [[sys.executable, "-c", WORKER, rank, port, str(output), *folders] for rank in "01"]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    try:
        errors = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    return torch.load(output)


@pytest.mark.slow
def test_two_processes_compute_what_one_computes(tmp_path):
    """Phi with its own QK-Norm and Llama with the added one, tied and not, and odd numbers of heads."""
    folders = []
    for backbone in ("phi", "llama"):
        for tied in (True, False):
            folders.append(str(tmp_path / f"{backbone}-{tied}"))
            tiny.showo(backbone, tie_word_embeddings=tied).save_pretrained(folders[-1])
    folders.append(str(tmp_path / "odd"))
    odd = {"hidden_size": 40, "num_attention_heads": 5, "num_key_value_heads": 5}
    tiny.showo("llama", text_options=odd).save_pretrained(folders[-1])
    folders.append(f"{EMBEDDED_MODEL}/model")
    found = run_two_processes(folders, tmp_path / "found.pt")
    ids = torch.arange(20, 60)[None]
    rounding = {"rtol": 1e-5, "atol": 1e-5}  # sums over half of the columns; the embedded model's logits reach 10
    for folder, (logits, image_logits, answer) in zip(folders, found, strict=True):
        model = ShowoForCausalLM.from_pretrained(folder)
        with torch.no_grad():
            torch.testing.assert_close(logits, model(ids).logits, **rounding)
            torch.testing.assert_close(image_logits, model(ids, codebook_only=True).logits, **rounding)
        expected = model.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None)
        assert answer.tolist() == expected.tolist()


def test_the_plan_follows_the_added_qk_norm():
    plan = tiny.showo("llama").tp_plan
    assert plan["lm_head"] == "colwise_gather_output"
    for name in ("q_proj", "k_proj"):
        assert f"model.layers.*.self_attn.{name}" not in plan
        assert plan[f"model.layers.*.self_attn.{name}.proj"] == "colwise"
        assert plan[f"model.layers.*.self_attn.{name}.norm"] == "replicated_with_grad_allreduce"
    assert plan["model.layers.*.self_attn.v_proj"] == "colwise"


def test_the_plan_of_a_backbone_with_its_own_norm_stays():
    plan = tiny.showo("phi").tp_plan
    assert plan["model.layers.*.self_attn.q_proj"] == "colwise"
    assert not any(name.endswith((".proj", ".norm")) for name in plan)


def test_a_plan_can_be_set():
    model = tiny.showo("llama")
    model.tp_plan = {"lm_head": "colwise_gather_output"}
    assert model.tp_plan == {"lm_head": "colwise_gather_output"}
