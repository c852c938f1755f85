"""Networks and training scripts as strangers write them: plain torch, nothing from rhoscope."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot


def inputs(network: nn.Module, pairs):
    """One-hot vectors of both elements, in the precision of the network."""
    return one_hot(pairs, network.n).to(next(network.parameters()).dtype)


SIGMAS = {
    "relu": torch.relu,
    "square": torch.square,
    "abs": torch.abs,
    "gelu": nn.functional.gelu,
    "tanh": torch.tanh,
}
FIRST_LAYERS = ("tied", "separate", "concatenated", "biased", "summed_embedding", "joined_embedding")


class TwoLayers(nn.Module):
    """Any first layer with any activation, named as people name them."""

    def __init__(self, n: int, q: int, *, first: str, sigma: str, d: int = 16):
        super().__init__()
        self.n, self.first, self.sigma = n, first, SIGMAS[sigma]
        bias = first in ("biased", "joined_embedding")
        if "embedding" in first:
            self.embed = nn.Embedding(n, d)
            self.fc1 = nn.Linear(d if first == "summed_embedding" else 2 * d, q, bias=bias)
        elif first == "separate":
            self.left, self.right = nn.Linear(n, q, bias=False), nn.Linear(n, q, bias=False)
        else:
            self.fc1 = nn.Linear(n if first == "tied" else 2 * n, q, bias=bias)
        self.fc2 = nn.Linear(q, n, bias=bias)

    def forward(self, pairs):
        both = self.embed(pairs) if "embedding" in self.first else inputs(self, pairs)
        if self.first == "separate":
            hidden = self.left(both[:, 0]) + self.right(both[:, 1])
        elif self.first in ("tied", "summed_embedding"):
            hidden = self.fc1(both.sum(1))
        else:
            hidden = self.fc1(both.flatten(1))
        return self.fc2(self.sigma(hidden))


@dataclass(frozen=True)
class Script:
    """A plain training script: network, loss, optimiser and length."""

    sigma: str
    first: str
    n: int
    q: int
    loss: str = "cross_entropy"
    optimiser: str = "adam"
    lr: float = 1e-2
    decay: float = 0.0
    steps: int = 600
    fraction: float = 1.0
    seed: int = 0
    options: dict = field(default_factory=dict)

    @property
    def tied(self) -> bool:
        """Whether both inputs go through the same weights."""
        return self.first in ("tied", "summed_embedding")

    def run(self) -> tuple[nn.Module, float]:
        """The trained network and its accuracy on all pairs."""
        torch.manual_seed(self.seed)
        network = TwoLayers(self.n, self.q, first=self.first, sigma=self.sigma, **self.options)
        kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
        optimiser = kinds[self.optimiser](network.parameters(), self.lr, weight_decay=self.decay)
        accuracy = train(
            network, (self.n,), loss=self.loss, optimiser=optimiser, steps=self.steps, fraction=self.fraction
        )
        return network, accuracy


def scripts(count: int, *, seed: int = 0):
    """So many scripts of all kinds, drawn at random; activations and losses in turn."""
    rng = random.Random(seed)
    for i in range(count):
        optimiser = rng.choice(["adam", "adamw", "sgd"])
        yield Script(
            sigma=list(SIGMAS)[i % len(SIGMAS)],
            loss=("cross_entropy", "mse")[i // len(SIGMAS) % 2],
            first=rng.choice(FIRST_LAYERS),
            n=rng.choice([5, 7, 9, 11, 13, 17, 23]),
            q=rng.choice([16, 32, 64, 128]),
            optimiser=optimiser,
            lr={"adam": rng.choice([3e-3, 1e-2]), "adamw": rng.choice([3e-3, 1e-2]), "sgd": 0.3}[optimiser],
            decay=rng.choice([1e-2, 0.1, 1.0] if optimiser == "adamw" else [0.0, 1e-4, 1e-3]),
            steps=rng.choice([200, 600, 2000, 5000]),
            fraction=rng.choice([1.0, 1.0, 0.8]),
            seed=seed * 1000 + i,
        )


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


def dihedral_table(m: int):
    """Products of the dihedral group of order 2 m: element f m + r is the rotation r, flipped if f = 1."""
    x, y = torch.arange(2 * m)[:, None], torch.arange(2 * m)[None]
    turned = torch.where(x >= m, x % m - y % m, x % m + y % m) % m
    return (x // m + y // m) % 2 * m + turned


def train(
    network: nn.Module, orders: tuple[int, ...], *, loss: str, optimiser, steps: int, fraction: float = 1.0,
    table=None,
) -> float:  # fmt: skip
    """Full-batch training on a share of the pairs; returns the accuracy on all pairs."""
    pairs, sums = pairs_and_sums(orders)
    if table is not None:
        sums = table[pairs[:, 0], pairs[:, 1]]
    kept = torch.randperm(len(pairs))[: int(fraction * len(pairs))] if fraction < 1 else slice(None)
    targets = one_hot(sums, int(sums.max()) + 1).float()[kept]
    for _ in range(steps):
        optimiser.zero_grad()
        outputs = network(pairs[kept])
        if loss == "mse":
            value = (outputs - targets).square().sum(1).mean()
        else:
            value = cross_entropy(outputs, sums[kept])
        value.backward()
        optimiser.step()
    return float((network(pairs).argmax(1) == sums).double().mean())
