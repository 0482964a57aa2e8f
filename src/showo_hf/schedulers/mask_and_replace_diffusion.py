r"""
The formulas of mask-and-replace diffusion (VQ-Diffusion, arXiv:2111.14822). Pure functions.

The states are the codebook indices 0..K-1 and the mask K. One step keeps a token with probability a + b, moves it to
any other index with probability b each, and masks it with probability c, where a + K b + c = 1. A masked token stays
masked:

    q(x_t = i | x_s = j) = b + a [i = j],    q(mask | j) = c,    q(mask | mask) = 1.

Several steps have the same form. With A the product of the a, 1 - C the product of the 1 - c, and B = (1 - A - C) / K,

    q(x_t = i | x_0 = k) = B + A [i = k],    q(mask | k) = C.

b = 0 is absorbing diffusion, and c = 0 is the uniform diffusion of D3PM (arXiv:2107.03006). The scalars are computed in
float64 on the CPU, and converted to the dtype and device of the tokens where they are combined with them.
"""

from dataclasses import dataclass

import torch


LOG_ZERO = -1e4  # stands for log(0): its exponential is 0 in every dtype, and its gradients are finite
ROUNDING_ERROR = 1e-12  # a smaller value of 1 - A - C is a rounding error
TINY = 1e-300  # avoids division by zero and log(0) in float64 where the result is not used


@dataclass(frozen=True)
class Transition:
    """
    A transition between two times. Float64 tensors on the CPU, of shape `()`, or `(batch, 1)` to combine with tokens.

    Args:
        keep: a, or A for a transition from time 0.
        replace: b or B, the probability of each single index.
        mask: c or C.
    """

    keep: torch.Tensor
    replace: torch.Tensor
    mask: torch.Tensor


def cumulative_transition(keep: torch.Tensor, mask: torch.Tensor, codebook_size: int) -> Transition:
    """The transition from time 0, given A and C in [0, 1] with A + C <= 1."""
    keep, mask = keep.double(), mask.double()
    rest = 1 - keep - mask
    return Transition(keep, torch.where(rest > ROUNDING_ERROR, rest / codebook_size, 0.0), mask)


def transition_between(early: Transition, late: Transition) -> Transition:
    """The transition from an earlier to a later time, given the transitions from time 0 to each."""
    keep = safe_divide(late.keep, early.keep)
    mask = torch.where(early.mask < 1, safe_divide(late.mask - early.mask, 1 - early.mask), 1.0)
    # Solves B_t = a B_s + b (1 - C_s). Exactly 0 where both B are 0.
    replace = safe_divide((late.replace - keep * early.replace).clamp(min=0), 1 - early.mask)
    return Transition(keep, replace, mask)


def safe_divide(numerator: torch.Tensor, denominator: torch.Tensor) -> torch.Tensor:
    """`numerator / denominator`, and 0 where the denominator is not positive."""
    return torch.where(denominator > 0, numerator / denominator.clamp(min=TINY), 0.0)


def transition_matrix(transition: Transition, codebook_size: int) -> torch.Tensor:
    """The matrix `q(x_t = column | x_s = row)`, (K + 1, K + 1) in float64. Every row sums to 1. For tests."""
    matrix = torch.zeros(codebook_size + 1, codebook_size + 1, dtype=torch.float64)
    identity = torch.eye(codebook_size, dtype=torch.float64)
    matrix[:codebook_size, :codebook_size] = transition.replace + transition.keep * identity
    matrix[:codebook_size, codebook_size] = transition.mask
    matrix[codebook_size, codebook_size] = 1.0
    return matrix


# Sampling


def sample_noised(
    original: torch.LongTensor,
    to: Transition,
    uniform: torch.Tensor,
    random_tokens: torch.LongTensor,
    codebook_size: int,
) -> torch.LongTensor:
    """
    Sample from `q(x_t | x_0)`.

    Args:
        original: x_0, (batch, tokens).
        to: the transition from time 0, of shape (batch, 1).
        uniform: uniform noise in [0, 1), (batch, tokens).
        random_tokens: uniformly random codebook indices, (batch, tokens).
    """
    changed = torch.where(uniform < (1 - to.mask).to(uniform), random_tokens, codebook_size)
    return torch.where(uniform < to.keep.to(uniform), original, changed)


def sample_posterior(
    sample: torch.LongTensor,
    original: torch.LongTensor,
    early: Transition,
    late: Transition,
    uniforms: tuple[torch.Tensor, torch.Tensor],
    random_tokens: torch.LongTensor,
    codebook_size: int,
) -> torch.LongTensor:
    """
    Sample from the posterior `q(x_s | x_t, x_0)` for any s < t, as a mixture of three parts; see
    [`posterior_mixture`].

    Args:
        sample, original: x_t and x_0, (batch, tokens).
        early, late: the transitions from time 0 to s and to t, of shape (batch, 1).
        uniforms: two tensors of uniform noise in [0, 1), (batch, tokens). The first decides whether a token stays, the
            second whether it becomes the token of x_0.
        random_tokens: uniformly random codebook indices, (batch, tokens).
    """
    case = torch.where(sample == codebook_size, 2, (sample != original).long())  # (batch, tokens)
    stay, origin = (
        share.to(uniforms[0]).expand(len(sample), 3).gather(-1, case)
        for share in posterior_mixture(early, late, codebook_size)
    )
    moved = torch.where(uniforms[1] < origin, original, random_tokens)
    return torch.where(uniforms[0] < stay, sample, moved)


def posterior_mixture(early: Transition, late: Transition, codebook_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    The posterior as a mixture: x_s is x_t, or else x_0, or else a uniformly random index.

    The product `q(x_t | x_s) q(x_s | x_0)` is a sum of three weights. If x_t is the mask: C_s, c A_s, c K B_s. If x_t
    is an index other than x_0: a B_s, b A_s, b K B_s. If x_t is x_0: a B_s + a A_s, b A_s, b K B_s.

    Returns:
        two tensors (batch, 3) in float64: the probability that x_s is x_t, and the probability of x_0 if it is not.
        The columns are for x_t equal to x_0, for another index, and for the mask.
    """
    step = transition_between(early, late)
    a, b = step.keep, step.replace
    # In uniform diffusion, a mask has probability 0. Treat it as an unknown token: sample x_s given x_0 alone.
    c = torch.where(late.mask > 0, step.mask, 1.0)
    stay = torch.cat([a * (early.replace + early.keep), a * early.replace, early.mask], -1)  # (batch, 3)
    to = torch.cat([b, b, c], -1)
    origin, anything = to * early.keep, to * codebook_size * early.replace
    moved = origin + anything
    # In absorbing diffusion, an index other than x_0 has probability 0: the prediction is wrong. The token stays.
    possible = stay + moved > 0
    return torch.where(possible, safe_divide(stay, stay + moved), 1.0), safe_divide(origin, moved)


def resample_truncated(
    probabilities: torch.Tensor, sampled: torch.LongTensor, uniform: torch.Tensor, rate: float
) -> torch.LongTensor:
    """
    Turn samples of distributions into samples of the truncated distributions (VQ-Diffusion).

    Truncation keeps the most likely indices, as few as reach the sum `rate`: an index is kept if all more likely ones
    sum to less. Indices as likely as the last one are kept too. Samples among the kept indices stay, and only the
    others are drawn again, so few rows are sorted.

    Args:
        probabilities: (batch, tokens, K), each row summing to 1.
        sampled: samples of `probabilities`, (batch, tokens).
        uniform: uniform noise in [0, 1), (batch, tokens), for drawing again.
        rate: in (0, 1].
    """
    chosen = probabilities.gather(-1, sampled.unsqueeze(-1))
    more_likely = torch.where(probabilities > chosen, probabilities, 0.0).sum(-1)  # (batch, tokens)
    outside = more_likely >= rate
    ordered, indices = probabilities[outside].sort(-1, descending=True)  # (rows, K)
    sums = ordered.cumsum(-1)
    lowest = ordered.gather(-1, (sums - ordered < rate).sum(-1, keepdim=True) - 1)
    last = (ordered >= lowest).sum(-1, keepdim=True) - 1
    target = uniform[outside].unsqueeze(-1) * sums.gather(-1, last)
    rank = torch.searchsorted(sums, target, right=True)
    return sampled.masked_scatter(outside, indices.gather(-1, torch.minimum(rank, last)))


def guided_log_probabilities(
    guidance_scale: float, conditional: torch.Tensor, unconditional: torch.Tensor
) -> torch.Tensor:
    """
    Classifier-free guidance of log-probabilities (arXiv:2205.16007): `g log p(x|y) - (g - 1) log p(x)`, normalized.

    This equals the log-softmax of guided logits; see docs/mathematics.md.

    Args:
        conditional, unconditional: (batch, tokens, K) logits or log-probabilities.
    """
    conditional, unconditional = conditional.log_softmax(-1), unconditional.log_softmax(-1)
    return (guidance_scale * conditional - (guidance_scale - 1) * unconditional).log_softmax(-1)


# Log-probabilities


def safe_log(value: torch.Tensor) -> torch.Tensor:
    """Logarithm of a probability, with `LOG_ZERO` in place of -inf at 0."""
    return torch.where(value > 0, value.clamp(min=TINY).log(), LOG_ZERO)


def log_posterior(log_p0: torch.Tensor, sample: torch.LongTensor, early: Transition, late: Transition) -> torch.Tensor:
    r"""
    `log sum_k q(x_s | x_t, x_0 = k) p(x_0 = k | x_t)` for all states, computed in log space.

    Args:
        log_p0: (batch, tokens, K) log-probabilities of x_0. A one-hot distribution gives the true posterior.
        sample: x_t, (batch, tokens).
        early, late: the transitions from time 0 to s and to t, of shape (batch, 1).

    Returns:
        (batch, tokens, K + 1) in the dtype of `log_p0`; below `LOG_ZERO / 2` for impossible states.
    """
    codebook_size = log_p0.shape[-1]
    log_p0 = log_p0.clamp(min=LOG_ZERO)
    step = transition_between(early, late)
    a, b = step.keep, step.replace
    masked = (sample == codebook_size).unsqueeze(-1)  # (batch, tokens, 1)

    def log_ratio(numerator: torch.Tensor, denominator: torch.Tensor) -> torch.Tensor:
        return safe_log(safe_divide(numerator, denominator)).to(log_p0).unsqueeze(-1)  # (batch, 1, 1)

    # x_t is the mask. If a mask has probability 0, treat it as an unknown token, as in `posterior_mixture`.
    possible = late.mask > 0
    c, late_mask = torch.where(possible, step.mask, 1.0), torch.where(possible, late.mask, 1.0)
    from_mask = torch.logaddexp(log_ratio(c * early.replace, late_mask), log_ratio(c * early.keep, late_mask) + log_p0)
    # x_t is the index i. x_0 is i with probability p_i, and another index with probability 1 - p_i.
    index = sample.clamp(max=codebook_size - 1).unsqueeze(-1)
    log_same = log_p0.gather(-1, index)  # (batch, tokens, 1)
    log_other = log_p0.scatter(-1, index, LOG_ZERO).logsumexp(-1, keepdim=True)
    keep_or_replace = late.keep + late.replace
    anywhere = torch.logaddexp(
        log_same + log_ratio(b * early.replace, keep_or_replace),
        log_other + log_ratio(b * early.replace, late.replace),
    )
    from_index = torch.logaddexp(anywhere, log_ratio(b * early.keep, late.replace) + log_p0)
    stayed = torch.logaddexp(
        log_same + log_ratio((a + b) * (early.keep + early.replace), keep_or_replace),
        log_other + log_ratio((a + b) * early.replace, late.replace),
    )
    # In absorbing diffusion, a token that is not masked never changed.
    replaces = (late.replace > 0).unsqueeze(-1).to(log_p0.device)
    from_index = from_index.scatter(-1, index, torch.where(replaces, stayed, 0.0))
    mask = torch.where(masked, log_ratio(early.mask, late_mask), LOG_ZERO)
    return torch.cat([torch.where(masked, from_mask, from_index), mask], -1)


def kl_divergence(log_q: torch.Tensor, log_p: torch.Tensor) -> torch.Tensor:
    """`sum q (log q - log p)` over the last dimension. States with q = 0 contribute 0."""
    difference = torch.where(log_q > LOG_ZERO / 2, log_q - log_p, 0.0)
    return (log_q.exp() * difference).sum(-1)


def prior_divergence(last: Transition, codebook_size: int) -> torch.Tensor:
    """
    KL divergence of `q(x_T | x_0)`, the same for any x_0, from the prior that sampling starts from: the mask with
    probability C_T, else a uniformly random index.
    """
    share = ((1 - last.mask) / codebook_size).clamp(min=TINY)
    kept, other = last.keep + last.replace, last.replace
    return torch.xlogy(kept, kept / share) + (codebook_size - 1) * torch.xlogy(other, other / share)
