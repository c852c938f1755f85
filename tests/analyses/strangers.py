"""Networks and training scripts as strangers write them: plain torch, nothing from rhoscope."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot


def inputs(network: nn.Module, pairs):
    """One-hot vectors of both elements, in the precision of the network."""
    return one_hot(pairs, network.n).to(next(network.parameters()).dtype)


class TiedQuadratic(nn.Module):
    """One matrix applied to the sum of the one-hots, squared."""

    def __init__(self, n: int, q: int):
        super().__init__()
        self.n = n
        self.first = nn.Linear(n, q, bias=False)
        self.second = nn.Linear(q, n, bias=False)
        for weight in self.parameters():
            nn.init.normal_(weight, std=0.3)

    def forward(self, pairs):
        return self.second(self.first(inputs(self, pairs).sum(1)).square())


class ConcatenatedQuadratic(nn.Module):
    """Both one-hots side by side, biases everywhere."""

    def __init__(self, n: int, q: int):
        super().__init__()
        self.n = n
        self.fc1 = nn.Linear(2 * n, q)
        self.fc2 = nn.Linear(q, n)

    def forward(self, pairs):
        return self.fc2(self.fc1(inputs(self, pairs).flatten(1)).square())


class EmbeddedRelu(nn.Module):
    """Tokens x y =, an embedding, a linear map of the three, logits over the whole vocabulary."""

    def __init__(self, n: int, q: int, d: int = 16):
        super().__init__()
        self.n = n
        self.embed = nn.Embedding(n + 1, d)
        self.l1 = nn.Linear(3 * d, q)
        self.unembed = nn.Linear(q, n + 1, bias=False)

    def forward(self, pairs):
        tokens = torch.cat([pairs, torch.full((len(pairs), 1), self.n)], 1)
        return self.unembed(torch.relu(self.l1(self.embed(tokens).flatten(1))))


class SummedEmbedding(nn.Module):
    """Two embeddings added, a linear map, the square."""

    def __init__(self, n: int, q: int, d: int = 24):
        super().__init__()
        self.emb_x, self.emb_y = nn.Embedding(n, d), nn.Embedding(n, d)
        self.mid = nn.Linear(d, q, bias=False)
        self.head = nn.Linear(q, n, bias=False)
        for weight in self.parameters():
            nn.init.normal_(weight, std=0.3)

    def forward(self, pairs):
        return self.head(self.mid(self.emb_x(pairs[:, 0]) + self.emb_y(pairs[:, 1])).square())


def pairs_and_sums(orders: tuple[int, ...]):
    """All pairs of elements (numbered in C order) of a product of cyclic groups, and their sums."""
    elements = torch.cartesian_prod(*map(torch.arange, orders)).reshape(-1, len(orders))
    n = len(elements)
    pairs = torch.cartesian_prod(torch.arange(n), torch.arange(n))
    total = (elements[pairs[:, 0]] + elements[pairs[:, 1]]) % torch.tensor(orders)
    number = torch.zeros(len(total), dtype=torch.long)
    for axis, order in enumerate(orders):
        number = number * order + total[:, axis]
    return pairs, number


def train(network: nn.Module, orders: tuple[int, ...], *, loss: str, optimiser, steps: int) -> float:
    """Full-batch training; returns the accuracy on all pairs."""
    pairs, sums = pairs_and_sums(orders)
    targets = one_hot(sums, int(sums.max()) + 1).float()
    for _ in range(steps):
        optimiser.zero_grad()
        outputs = network(pairs)
        if loss == "mse":
            value = (outputs - targets).square().sum(1).mean()
        else:
            value = cross_entropy(outputs, sums)
        value.backward()
        optimiser.step()
    return float((network(pairs).argmax(1) == sums).double().mean())
