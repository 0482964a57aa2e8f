"""What the forward pass saves in training: masks that sdpa does not need, and copies of autocast."""

import pytest
import tiny
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks


CONFIG = tiny.showo_config()
PAD = CONFIG.pad_token_id
TEXT = torch.tensor([[0, 3, 4, 5, 0, 7], [0, 9, 8, 0, PAD, PAD]])


def mask_of(model, ids: torch.LongTensor):
    return model.omni_attention_mask(model.get_input_embeddings()(ids), ids, model.padding_mask(ids, None))


@pytest.mark.parametrize("backbone", ["phi", "llama"])
def test_rows_of_text_train_without_a_mask(backbone):
    model = tiny.showo(backbone)
    wanted = model(TEXT, labels=TEXT.masked_fill(TEXT == PAD, -100))
    assert mask_of(model, TEXT) is not None
    model.train()
    assert mask_of(model, TEXT) is None
    found = model(TEXT, labels=TEXT.masked_fill(TEXT == PAD, -100))
    torch.testing.assert_close(found.loss, wanted.loss)


def test_rows_with_images_or_pads_before_the_text_have_a_mask():
    model = tiny.showo().train()
    image = torch.tensor([[CONFIG.mmu_token_id, *tiny.image(CONFIG, 1), 0, 5]])
    assert mask_of(model, image) is not None
    together = torch.cat([image, nn.functional.pad(TEXT[:1], (0, image.shape[1] - 6), value=PAD)])
    assert mask_of(model, together) is not None
    assert mask_of(model, TEXT.flip(-1)) is not None


def copies_of_norms(model, ids: torch.LongTensor) -> int:
    """The tensors in bfloat16 of the shape of the hidden states that a forward pass under autocast keeps."""
    shape = (*ids.shape, model.config.hidden_size)
    kept = {}

    def pack(tensor):
        if tensor.dtype == torch.bfloat16 and tensor.numel() == ids.numel() * shape[-1]:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        model(ids, labels=ids, use_cache=False)
    return len(kept)


@pytest.mark.parametrize("backbone, fewer", [("phi", 3), ("llama", 3)])
def test_autocast_casts_the_output_of_a_norm_once(backbone, fewer):
    """Of Phi's layer, query, key, value and `fc1` read one norm; of Llama's, three projections one and two another."""
    model = tiny.showo(backbone).train()
    ids = torch.tensor([[CONFIG.t2i_token_id, 0, 5, 0, *tiny.image(CONFIG, 1)]])
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(ids, labels=ids).loss
    count = copies_of_norms(model, ids)
    for module in model.model.layers.modules():
        module._forward_hooks.clear()
    with torch.autocast("cpu", torch.bfloat16):
        assert model(ids, labels=ids).loss.item() == loss.item()
    assert copies_of_norms(model, ids) - count == fewer * len(model.model.layers)
