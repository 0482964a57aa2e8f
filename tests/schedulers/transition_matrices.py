"""Mask-and-replace diffusion with explicit float64 matrices, written independently of the package."""

import itertools

import torch


def one_step(keep: float, mask: float, codebook_size: int) -> torch.Tensor:
    """`q(x_t = column | x_{t-1} = row)`: keep, replace with any index, or mask. The mask is the last, absorbing state."""
    replace = (1 - keep - mask) / codebook_size
    matrix = torch.full((codebook_size + 1, codebook_size + 1), replace, dtype=torch.float64)
    matrix += keep * torch.eye(codebook_size + 1, dtype=torch.float64)
    matrix[:, codebook_size] = mask
    matrix[codebook_size] = torch.tensor([0.0] * codebook_size + [1.0])
    return matrix


def product(matrices, codebook_size: int) -> torch.Tensor:
    """The matrix of several steps."""
    result = torch.eye(codebook_size + 1, dtype=torch.float64)
    for matrix in matrices:
        result = result @ matrix
    return result


def bayes(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """q(x_s = j | x_t = i, x_0 = k) as [i, k, j], by Bayes' rule. NaN where x_0 cannot become x_t."""
    codebook_size = len(first) - 1
    joint = first[:codebook_size, None, :] * second.T[None]  # [k, i, j] = q(j | k) q(i | j)
    return (joint / joint.sum(-1, keepdim=True)).transpose(0, 1)


def steps_of(keeps: torch.Tensor, masks: torch.Tensor, codebook_size: int) -> list[torch.Tensor]:
    """The matrices of single steps, given the cumulative A and C at each time."""
    pairs = itertools.pairwise(zip(keeps.tolist(), masks.tolist(), strict=True))
    return [one_step(late[0] / early[0], 1 - (1 - late[1]) / (1 - early[1]), codebook_size) for early, late in pairs]


class JointChain:
    """
    The Markov chain of a few independently noised tokens, with all states enumerated.

    Args:
        matrices: the matrix of each step, for one token.
        tokens: the number of tokens.
    """

    def __init__(self, matrices: list[torch.Tensor], tokens: int):
        self.codebook_size, self.tokens, self.times = len(matrices[0]) - 1, tokens, len(matrices)
        self.states = torch.tensor(list(itertools.product(range(self.codebook_size + 1), repeat=tokens)))
        self.images = [i for i, state in enumerate(self.states) if (state < self.codebook_size).all()]
        self.upto = [product(matrices[:t], self.codebook_size) for t in range(self.times + 1)]
        # Index t holds the posterior of time t, given time t + 1.
        self.posteriors = [bayes(self.upto[t], matrices[t]) for t in range(self.times)]

    def noising(self, t: int) -> torch.Tensor:
        """`q(x_t = column | x_0 = row)` for the states of all tokens."""
        table = self.upto[t]
        found = torch.ones(len(self.states), len(self.states), dtype=torch.float64)
        for i in range(self.tokens):
            found *= table[self.states[:, i]][:, self.states[:, i]]
        return found

    def true_posteriors(self, t: int, image: torch.Tensor) -> torch.Tensor:
        """q(x_{t-1} | x_t, x_0) of each token at each state: (states, tokens, K + 1)."""
        return torch.nan_to_num(self.posteriors[t - 1][self.states, image])

    def model_posteriors(self, t: int, p0: torch.Tensor) -> torch.Tensor:
        """
        p(x_{t-1} | x_t), as above, of a model that predicts `p0`, (states, tokens, K). In absorbing diffusion, a known
        token that contradicts the prediction stays.
        """
        tables = self.posteriors[t - 1][self.states]  # (states, tokens, K, K + 1)
        stays = torch.eye(self.codebook_size + 1, dtype=torch.float64)[self.states].unsqueeze(-2)
        return (p0.unsqueeze(-1) * torch.where(tables.isnan(), stays, tables)).sum(-2)

    def likelihood(self, p0: list[torch.Tensor], prior: torch.Tensor) -> torch.Tensor:
        """p(x_0) of each state, summed over all paths from `prior`, (K + 1,) per token. `p0[t]` as above."""
        found = prior[self.states].prod(-1)
        for t in range(self.times, 0, -1):
            tables = self.model_posteriors(t, p0[t])
            back = torch.stack([tables[:, i][:, self.states[:, i]] for i in range(self.tokens)]).prod(0)
            found = found @ back
        return found

    def bound(self, p0: list[torch.Tensor], image: torch.Tensor, prior: torch.Tensor) -> float:
        """The variational bound of `-log p(x_0)`: the expected KL divergence of each step and of the prior."""
        index = int((self.states == image).all(-1).nonzero())
        total = 0.0
        for t in range(1, self.times + 1):
            terms = kl(self.true_posteriors(t, image), self.model_posteriors(t, p0[t])).sum(-1)  # (states,)
            total += (self.noising(t)[index] * terms).sum().item()
        return total + kl(self.upto[-1][image], prior).sum().item()


def kl(q: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """`sum q log (q / p)` over the last dimension."""
    return torch.where(q > 0, q * (q.clamp(min=1e-300) / p.clamp(min=1e-300)).log(), 0.0).sum(-1)
