r"""The mathematics of mask-and-replace diffusion (VQ-Diffusion, arXiv:2111.14822). Pure functions.

States are the codes 0..K-1 and the mask K. A step keeps a token with probability a + b, moves it to any other code
with probability b, and masks it with probability c, where a + K b + c = 1; the mask stays. So one step is

    q(x_t = i | x_s = j) = b + a [i = j],    q(mask | j) = c,    q(mask | mask) = 1,

and any number of steps has the same form: with A the product of the a, 1 - C that of the 1 - c, and B = (1 - A - C) / K,

    q(x_t = i | x_0 = k) = B + A [i = k],    q(mask | k) = C.

b = 0 is absorbing diffusion, c = 0 the uniform kind of D3PM (arXiv:2107.03006). The scalars are computed in float64 on
the CPU, and meet the tokens in the tokens' dtype and on their device.
"""

from dataclasses import dataclass

import torch


LOG_ZERO = -1e4  # the logarithm of nothing: its exponential is 0 in every dtype, and its gradients are numbers
ROUNDING = 1e-12  # a probability below it comes from rounding 1 - A - C
TINY = 1e-300  # keeps a float64 from 0 where the quotient or logarithm is not used


@dataclass(frozen=True)
class Transition:
    """
    A transition between two times, as CPU tensors of one shape in float64: `()`, or `(batch, 1)` to meet (batch, tokens).

    Args:
        keep: a, or A from time 0 on.
        replace: b or B, the probability of each single code.
        mask: c or C.
    """

    keep: torch.Tensor
    replace: torch.Tensor
    mask: torch.Tensor


def cumulative(keep: torch.Tensor, mask: torch.Tensor, num_codes: int) -> Transition:
    """The transition from time 0 on, of A and C in [0, 1] with A + C <= 1."""
    keep, mask = keep.double(), mask.double()
    rest = 1 - keep - mask
    return Transition(keep, torch.where(rest > ROUNDING, rest / num_codes, 0.0), mask)


def between(early: Transition, late: Transition) -> Transition:
    """The transition from the time of `early` to that of `late`, both from time 0 on."""
    keep = quotient(late.keep, early.keep)
    mask = torch.where(early.mask < 1, quotient(late.mask - early.mask, 1 - early.mask), 1.0)
    # From B_t = a B_s + b (1 - C_s): exactly 0 where both B are.
    replace = quotient((late.replace - keep * early.replace).clamp(min=0), 1 - early.mask)
    return Transition(keep, replace, mask)


def quotient(over: torch.Tensor, under: torch.Tensor) -> torch.Tensor:
    """`over / under`, and 0 where `under` is not above 0."""
    return torch.where(under > 0, over / under.clamp(min=TINY), 0.0)


def transition_matrix(transition: Transition, num_codes: int) -> torch.Tensor:
    """`q(x_t = column | x_s = row)`, (K + 1, K + 1) in float64; every row sums to one. For looking at, not for speed."""
    matrix = torch.zeros(num_codes + 1, num_codes + 1, dtype=torch.float64)
    matrix[:num_codes, :num_codes] = transition.replace + transition.keep * torch.eye(num_codes, dtype=torch.float64)
    matrix[:num_codes, num_codes] = transition.mask
    matrix[num_codes, num_codes] = 1.0
    return matrix


# Draws


def noised(
    original: torch.LongTensor, to: Transition, uniform: torch.Tensor, codes: torch.LongTensor, num_codes: int
) -> torch.LongTensor:
    """
    A draw from `q(x_t | x_0)`.

    Args:
        original, codes: (batch, tokens); `codes` are uniformly random ones.
        to: from time 0 on, of shape (batch, 1).
        uniform: (batch, tokens) in [0, 1).
    """
    lost = torch.where(uniform < (1 - to.mask).to(uniform), codes, num_codes)
    return torch.where(uniform < to.keep.to(uniform), original, lost)


def ancestor(
    sample: torch.LongTensor,
    original: torch.LongTensor,
    early: Transition,
    late: Transition,
    uniforms: tuple[torch.Tensor, torch.Tensor],
    codes: torch.LongTensor,
    num_codes: int,
) -> torch.LongTensor:
    """
    A draw from the posterior `q(x_s | x_t, x_0)` for any s < t, as a mixture of three parts, see [`ancestor_shares`].

    Args:
        sample, original: x_t and x_0, (batch, tokens).
        early, late: from time 0 to s and to t, of shape (batch, 1).
        uniforms: two of (batch, tokens) in [0, 1); the first below its share lets a token stay, the second below its
            share makes it that of x_0.
        codes: (batch, tokens), uniformly random ones.
    """
    kind = torch.where(sample == num_codes, 2, (sample != original).long())  # (batch, tokens)
    stay, origin = (
        share.to(uniforms[0]).expand(len(sample), 3).gather(-1, kind)
        for share in ancestor_shares(early, late, num_codes)
    )
    moved = torch.where(uniforms[1] < origin, original, codes)
    return torch.where(uniforms[0] < stay, sample, moved)


def ancestor_shares(early: Transition, late: Transition, num_codes: int) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Where x_s comes from, given x_t and x_0: it is x_t, or else the code of x_0, or else any code.

    The product `q(x_t | x_s) q(x_s | x_0)` falls into three weights. For a mask: C_s, c A_s, c K B_s. For a code that is
    not x_0: a B_s, b A_s, b K B_s. For x_0 itself: a B_s + a A_s, b A_s, b K B_s.

    Returns:
        the share that stays, and the share of x_0 in what does not, both (batch, 3) in float64: for a token that is
        x_0, for another code, and for the mask.
    """
    step = between(early, late)
    a, b = step.keep, step.replace
    # A mask that cannot be, as in the uniform kind, stands for an unknown token: x_s is drawn given x_0 alone.
    c = torch.where(late.mask > 0, step.mask, 1.0)
    stay = torch.cat([a * (early.replace + early.keep), a * early.replace, early.mask], -1)  # (batch, 3)
    to = torch.cat([b, b, c], -1)
    origin, anything = to * early.keep, to * num_codes * early.replace
    moved = origin + anything
    # A code that x_0 cannot have become, as in absorbing diffusion: the model's guess was wrong, and the token stays.
    possible = stay + moved > 0
    return torch.where(possible, quotient(stay, stay + moved), 1.0), quotient(origin, moved)


def redraw_unlikely(
    probabilities: torch.Tensor, drawn: torch.LongTensor, uniform: torch.Tensor, rate: float
) -> torch.LongTensor:
    """
    Draws from distributions to draws from the same, truncated (VQ-Diffusion): only the most likely codes
    are left, as few as reach the sum `rate`. A code is one of them if the codes that are likelier sum to less.

    A draw inside is kept, one outside is drawn again from those inside, so few rows are sorted. Codes as likely as the
    last one inside are inside too.

    Args:
        probabilities: (batch, tokens, K), each row summing to one.
        drawn: (batch, tokens), drawn from them.
        uniform: (batch, tokens) in [0, 1), for the second draw.
        rate: in (0, 1].
    """
    chosen = probabilities.gather(-1, drawn.unsqueeze(-1))
    likelier = torch.where(probabilities > chosen, probabilities, 0.0).sum(-1)  # (batch, tokens)
    outside = likelier >= rate
    ordered, codes = probabilities[outside].sort(-1, descending=True)  # (rows, K)
    sums = ordered.cumsum(-1)
    lowest = ordered.gather(-1, (sums - ordered < rate).sum(-1, keepdim=True) - 1)
    last = (ordered >= lowest).sum(-1, keepdim=True) - 1
    place = uniform[outside].unsqueeze(-1) * sums.gather(-1, last)
    index = torch.searchsorted(sums, place, right=True)
    return drawn.masked_scatter(outside, codes.gather(-1, torch.minimum(index, last)))


def guided_log_probabilities(
    guidance_scale: float, conditional: torch.Tensor, unconditional: torch.Tensor
) -> torch.Tensor:
    """
    Classifier-free guidance of log-probabilities (arXiv:2205.16007): `g log p(x|y) - (g - 1) log p(x)`,
    normalised again. The softmax of guided logits is the same, see docs/mathematics.md.

    Args:
        conditional, unconditional: (batch, tokens, K) logits or log-probabilities.
    """
    conditional, unconditional = conditional.log_softmax(-1), unconditional.log_softmax(-1)
    return (guidance_scale * conditional - (guidance_scale - 1) * unconditional).log_softmax(-1)


# Log-probabilities


def log_of(value: torch.Tensor) -> torch.Tensor:
    """Logarithm of a probability; `LOG_ZERO`, not -inf, at 0."""
    return torch.where(value > 0, value.clamp(min=TINY).log(), LOG_ZERO)


def log_posterior(log_p0: torch.Tensor, sample: torch.LongTensor, early: Transition, late: Transition) -> torch.Tensor:
    r"""
    `log sum_k q(x_s | x_t, x_0 = k) p(x_0 = k | x_t)`, in log space, over all states.

    Args:
        log_p0: (batch, tokens, K) log-probabilities of x_0; a one-hot one gives the true posterior.
        sample: x_t, (batch, tokens).
        early, late: from time 0 to s and to t, of shape (batch, 1).

    Returns:
        (batch, tokens, K + 1) in the dtype of `log_p0`; below `LOG_ZERO / 2` for what is impossible.
    """
    num_codes = log_p0.shape[-1]
    log_p0 = log_p0.clamp(min=LOG_ZERO)
    step = between(early, late)
    a, b = step.keep, step.replace
    masked = (sample == num_codes).unsqueeze(-1)  # (batch, tokens, 1)

    def log_ratio(over: torch.Tensor, under: torch.Tensor) -> torch.Tensor:
        return log_of(quotient(over, under)).to(log_p0).unsqueeze(-1)  # (batch, 1, 1)

    # x_t is the mask; one that cannot be stands for an unknown token, as in `ancestor_shares`.
    possible = late.mask > 0
    c, over_mask = torch.where(possible, step.mask, 1.0), torch.where(possible, late.mask, 1.0)
    from_mask = torch.logaddexp(log_ratio(c * early.replace, over_mask), log_ratio(c * early.keep, over_mask) + log_p0)
    # x_t is the code i: x_0 is i with probability p_i, something else with 1 - p_i.
    here = sample.clamp(max=num_codes - 1).unsqueeze(-1)
    log_same = log_p0.gather(-1, here)  # (batch, tokens, 1)
    log_other = log_p0.scatter(-1, here, LOG_ZERO).logsumexp(-1, keepdim=True)
    both = late.keep + late.replace
    anywhere = torch.logaddexp(
        log_same + log_ratio(b * early.replace, both), log_other + log_ratio(b * early.replace, late.replace)
    )
    from_code = torch.logaddexp(anywhere, log_ratio(b * early.keep, late.replace) + log_p0)
    stayed = torch.logaddexp(
        log_same + log_ratio((a + b) * (early.keep + early.replace), both),
        log_other + log_ratio((a + b) * early.replace, late.replace),
    )
    # In absorbing diffusion a code is what it was.
    replaces = (late.replace > 0).unsqueeze(-1).to(log_p0.device)
    from_code = from_code.scatter(-1, here, torch.where(replaces, stayed, 0.0))
    mask = torch.where(masked, log_ratio(early.mask, over_mask), LOG_ZERO)
    return torch.cat([torch.where(masked, from_mask, from_code), mask], -1)


def kl_divergence(log_q: torch.Tensor, log_p: torch.Tensor) -> torch.Tensor:
    """`sum q (log q - log p)` over the last dimension; states with q = 0 count nothing."""
    difference = torch.where(log_q > LOG_ZERO / 2, log_q - log_p, 0.0)
    return (log_q.exp() * difference).sum(-1)


def prior_divergence(last: Transition, num_codes: int) -> torch.Tensor:
    """
    KL of `q(x_T | x_0)`, for any x_0, from the prior that sampling starts at: the mask with probability C_T, else any code.
    """
    share = ((1 - last.mask) / num_codes).clamp(min=TINY)
    kept, other = last.keep + last.replace, last.replace
    return torch.xlogy(kept, kept / share) + (num_codes - 1) * torch.xlogy(other, other / share)
