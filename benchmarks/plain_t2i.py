"""Text to image like the original Show-o code: no cache, full padded sequences, logits of the whole vocabulary.

The baseline of `t2i.py`. It uses the model and the scheduler of the pipeline.
"""

import torch

from showo_hf import MaskGITScheduler, ShowoForCausalLM, ShowoProcessor


@torch.no_grad()
def plain_text_to_image(
    model: ShowoForCausalLM,
    processor: ShowoProcessor,
    prompts: list[str],
    num_inference_steps: int,
    guidance_scale: float,
    generator: torch.Generator,
    num_image_tokens: int | None = None,
) -> torch.LongTensor:
    """Image tokens (batch, tokens) for `prompts`. Every step runs two full-length rows per image."""
    config = model.config
    scheduler = MaskGITScheduler(mask_token_id=config.codebook_size)
    scheduler.set_timesteps(num_inference_steps)
    batch = processor.text_to_image(prompts + [""] * len(prompts), num_image_tokens=num_image_tokens)
    rows = batch["input_ids"].to(model.device)  # (2 * batch, 129 + tokens + 2)
    num_tokens = num_image_tokens or config.num_image_tokens
    image = slice(-num_tokens - 1, -1)
    codebook = slice(config.image_token_offset, config.image_token_offset + config.codebook_size)
    tokens = torch.full((len(prompts), num_tokens), config.codebook_size, device=model.device)
    for timestep in scheduler.timesteps:
        masked = tokens == config.codebook_size
        ids = torch.where(masked, config.mask_token_id, tokens + config.image_token_offset)
        rows[:, image] = torch.cat([ids, ids])
        conditional, unconditional = model(rows, use_cache=False).logits.chunk(2)
        logits = guidance_scale * conditional - (guidance_scale - 1) * unconditional
        tokens = scheduler.step(logits[:, image, codebook], timestep, tokens, generator=generator).prev_sample
    return tokens
