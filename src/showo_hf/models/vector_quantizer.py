"""Nearest codebook entries, and a codebook that learns."""

import torch
from torch import distributed, nn
from torch.nn import functional as F


CODES_IN_CHUNK = 4096
CODES_IN_GROUP = 64
#: Distances in memory at a time: what fits into a CPU's cache, and what keeps an accelerator busy.
CPU_CHUNK = 2**20
ACCELERATOR_CHUNK = 2**24


@torch.no_grad()
def nearest_codes(latents: torch.Tensor, codebook: torch.Tensor) -> torch.LongTensor:
    r"""
    For each latent, the index of the codebook entry with the smallest Euclidean distance; the first one at a tie.

    The nearest entry e has the largest `z e - |e|^2 / 2`. These scores are one matrix product of `[z, 1]` and
    `[e, -|e|^2 / 2]`. They are computed in chunks that fit into the cache, and never all at once. Computed in float32
    or better. A GPU for which TF32 is switched on rounds the products to it, and may take another entry that is as near.

    Args:
        latents (`torch.Tensor` of shape `(positions, channels)`): any floating-point dtype.
        codebook (`torch.Tensor` of shape `(codes, channels)`): any floating-point dtype, at least one code.

    Returns:
        `torch.LongTensor` of shape `(positions,)`: indices in 0..codes-1.
    """
    dtype = torch.promote_types(torch.promote_types(latents.dtype, codebook.dtype), torch.float32)
    latents, num_codes = latents.to(dtype), len(codebook)
    rows = F.pad(latents, (0, 1), value=1.0).T  # (channels + 1, positions)
    if torch.compiler.is_exporting():  # a graph has no loop over chunks whose number it does not know
        return (with_bias(codebook.to(dtype)) @ rows).argmax(0)
    chunk = CPU_CHUNK if latents.device.type == "cpu" else ACCELERATOR_CHUNK
    step = max(1, chunk // CODES_IN_CHUNK)
    best = latents.new_full((len(latents),), -torch.inf)
    indices = torch.zeros(len(latents), dtype=torch.int64, device=latents.device)
    for first in range(0, num_codes, CODES_IN_CHUNK):
        entries = with_bias(codebook[first : first + CODES_IN_CHUNK].to(dtype))  # (codes, channels + 1)
        # A whole number of groups; the added entries have the score -inf.
        entries = F.pad(entries, (0, 0, 0, -len(entries) % CODES_IN_GROUP))
        entries[num_codes - first :, -1] = -torch.inf
        for start in range(0, len(latents), step):
            part = slice(start, start + step)
            scores, winners = best_of_groups(entries @ rows[:, part])
            better = scores > best[part]
            best[part] = torch.where(better, scores, best[part])
            indices[part] = torch.where(better, winners + first, indices[part])
    return indices


def with_bias(codebook: torch.Tensor) -> torch.Tensor:
    """Entries e (codes, channels) as `[e, -|e|^2 / 2]` (codes, channels + 1)."""
    return torch.cat([codebook, -0.5 * codebook.square().sum(1, keepdim=True)], dim=1)


def best_of_groups(scores: torch.Tensor) -> tuple[torch.Tensor, torch.LongTensor]:
    """
    The largest of scores (codes, positions) and its index for each position; the first one at a tie.

    `amax` over the outer dimension is several times faster than `argmax`, so an `argmax` only sees the best of each
    group of codes and then the codes of the best group.
    """
    grouped = scores.unflatten(0, (-1, CODES_IN_GROUP))  # (groups, codes in a group, positions)
    best, group = grouped.amax(1).max(0)  # (positions,)
    positions = torch.arange(scores.shape[1], device=scores.device)
    return best, grouped[group, :, positions].argmax(1) + group * CODES_IN_GROUP


class VectorQuantizer(nn.Module):
    r"""
    A codebook of vectors.

    `codebook` (codes, channels) are the entries. `code_usage` (codes,) is the running share of the latents that an entry
    got, as a multiple of an equal share: 1 for an entry that is used as often as the mean.

    Args:
        codebook_size (`int`): number of entries.
        channels (`int`): channels of an entry.
        cosine (`bool`): compare and use entries normalized to length 1.
        learning (`str`): "ema" or "gradient", see [`ShowoVQTokenizerConfig`].
        decay (`float`): decay of the running means.
        dead_code_threshold (`float`): an entry with a smaller `code_usage` is restarted.
    """

    def __init__(
        self,
        codebook_size: int,
        channels: int,
        cosine: bool = False,
        learning: str = "gradient",
        decay: float = 0.99,
        dead_code_threshold: float = 0.03,
    ):
        super().__init__()
        self.codebook = nn.Parameter(torch.empty(codebook_size, channels), requires_grad=learning == "gradient")
        self.register_buffer("code_usage", torch.ones(codebook_size))
        self.cosine = cosine
        self.learning = learning
        self.decay = decay
        self.dead_code_threshold = dead_code_threshold

    def forward(self) -> torch.Tensor:
        """The codebook (codes, channels). accelerate loads offloaded weights only for the time of a `forward`."""
        return self.codebook

    def entries(self, indices: torch.LongTensor) -> torch.Tensor:
        """Codebook entries (..., channels) of indices (...), of length 1 with the cosine distance."""
        found = F.embedding(indices.long(), self().to(indices.device))
        return F.normalize(found.float(), dim=-1).to(found.dtype) if self.cosine else found

    @torch.no_grad()
    def nearest(self, latents: torch.Tensor) -> torch.LongTensor:
        """Indices (positions,) of the entries that are nearest to latents (positions, channels)."""
        codebook = self().to(latents.device)
        if self.cosine:  # the latents' lengths do not change which entry is nearest
            codebook = F.normalize(codebook.float(), dim=-1)
        with torch.autocast(latents.device.type, enabled=False):  # close entries differ by less than half precision
            return nearest_codes(latents, codebook)

    def train(self, mode: bool = True):
        """Same as in torch, but a codebook that learns by EMA has no gradient."""
        super().train(mode)
        if self.learning == "ema":
            self.codebook.requires_grad_(False)  # again, because loading creates new parameters
        return self

    @torch.no_grad()
    def update(
        self, latents: torch.Tensor, indices: torch.LongTensor, generator: torch.Generator | None = None
    ) -> int:
        r"""
        Update `code_usage`, move the entries if they learn by EMA, and restart dead entries.

        An entry that got the share p of the latents, with mean m, moves by `e += (1 - decay) p / usage (m - e)` with
        the new `usage = decay usage + (1 - decay) p`. That is arXiv:1711.00937, appendix A.1, with means over shares
        instead of counts. In a process group, every process gets the result for all latents of all processes.

        Args:
            latents (`torch.Tensor` of shape `(positions, channels)`): the latents as they are compared with entries.
            indices (`torch.LongTensor` of shape `(positions,)`): their entries.
            generator (`torch.Generator`, *optional*): a CPU generator that draws the latents for dead entries. Needed
                unless `dead_code_threshold` is 0.

        Returns:
            number of restarted entries.

        Raises:
            ValueError: if `generator` is None although entries may be restarted.
        """
        if generator is None and self.dead_code_threshold:
            raise ValueError("`generator` must be a torch.Generator where `dead_code_threshold` is above 0, got None.")
        latents = latents.to(self.codebook.dtype)
        size = len(self.codebook)
        counts = torch.bincount(indices, minlength=size).to(self.code_usage.dtype)  # (codes,)
        if in_process_group():
            distributed.all_reduce(counts)
        if not counts.any():
            return 0
        new = (1 - self.decay) * counts * (size / counts.sum())
        self.code_usage.mul_(self.decay).add_(new)
        if self.learning == "ema":
            sums = torch.zeros_like(self.codebook).index_add_(0, indices, latents)
            if in_process_group():
                distributed.all_reduce(sums)
            weight = torch.where(counts > 0, new / self.code_usage, 0.0).unsqueeze(1)  # (codes, 1)
            means = sums / counts.clamp(min=1).unsqueeze(1)
            self.codebook.lerp_(means, weight.to(means.dtype))
            if self.cosine:
                self.codebook.copy_(F.normalize(self.codebook, dim=-1))
        return self.restart_dead_codes(latents, indices, generator) if self.dead_code_threshold else 0

    @torch.no_grad()
    def restart_dead_codes(self, latents: torch.Tensor, indices: torch.LongTensor, generator: torch.Generator) -> int:
        """
        Put dead entries at latents (positions, channels) of the entries (positions,), and return how many there were.

        The latents are drawn without replacement, each with a probability in proportion to its squared distance to its
        entry, as the seeds of k-means++ are. So entries go where the codebook is coarse, unless there are more dead entries
        than latents, as in the first steps of a training: then every latent becomes an entry. A restarted entry has the
        usage 1. If there are more dead entries than latents that differ from theirs, the rest stays dead until the next
        call. In a process group, the process that has most such latents gives them.
        """
        dead = (self.code_usage < self.dead_code_threshold).nonzero().squeeze(1)
        if not len(dead):
            return 0
        distances = (latents - self.entries(indices)).float().square().sum(1).cpu()  # (positions,)
        source, available = 0, int(distances.count_nonzero())
        if in_process_group():
            lengths: list[int] = [0] * distributed.get_world_size()
            distributed.all_gather_object(lengths, available)
            available = max(lengths)
            source = lengths.index(available)
        dead = dead[:available]
        if not len(dead):
            return 0
        chosen = latents.new_empty(len(dead), latents.shape[1])
        if not in_process_group() or distributed.get_rank() == source:
            drawn = torch.multinomial(distances, len(dead), generator=generator)
            chosen.copy_(latents[drawn.to(latents.device)])
        if in_process_group():
            distributed.broadcast(chosen, source)
        self.codebook[dead] = chosen
        self.code_usage[dead] = 1.0
        return len(dead)


def in_process_group() -> bool:
    """Whether several processes train together."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
