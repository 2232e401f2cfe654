"""Trains SASNet in plain PyTorch, for `bench_train.py` to compare with.

The same network, fed by a DataLoader that samples sets on the host.
"""

import numpy as np
import torch
from torch import nn

from sasnet_jax.model.config import TrainConfig
from sasnet_jax.model.draws import Data


class TorchTraining:
    """The same network in idiomatic PyTorch."""

    def __init__(self, config: TrainConfig, host: Data, steps: int):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32, as XLA there
        self.network = SASNet(config, host.embedding_dim).to(self.device)
        self.parameters = sum(part.numel() for part in self.network.parameters())
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), config.learning_rate, weight_decay=config.weight_decay
        )
        self.clip_norm = config.clip_norm
        self.dataset = _Sets(host, config.set_size)
        self.loader = torch.utils.data.DataLoader(
            self.dataset, config.batch_size, shuffle=True, drop_last=True
        )
        self.steps = steps
        self.ready = [batch for batch, _ in zip(self.loader, range(steps), strict=False)]

    def train_from_loader(self) -> None:
        """Runs `steps` steps, with sets sampled and gathered on the host."""
        for batch, _ in zip(self.loader, range(self.steps), strict=False):
            self._step(batch)
        self._wait()

    def train_from_memory(self) -> None:
        """Runs `steps` steps on batches prepared in advance."""
        for batch in self.ready:
            self._step(batch)
        self._wait()

    def _step(self, batch: list[torch.Tensor]) -> None:
        embeddings, mask, label = (part.to(self.device, non_blocking=True) for part in batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(self.network(embeddings.float(), mask), label)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.clip_norm)
        self.optimizer.step()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class _Sets(torch.utils.data.Dataset):
    """Samples both sides' sets of a target on the host."""

    def __init__(self, host: Data, size: int):
        self.host, self.size = host, size
        self.rng = np.random.default_rng(0)
        (scaling,) = host.scalings
        self.mean, self.scale = scaling.mean, scaling.scale

    def __len__(self) -> int:
        return len(self.host.stars)

    def __getitem__(self, target: int) -> tuple[np.ndarray, np.ndarray, np.int64]:
        (table,) = self.host.tables
        embeddings = np.zeros((2, self.size, table.shape[1]), np.float32)
        mask = np.zeros((2, self.size), bool)
        for side, context in enumerate(self.host.contexts):
            count = context.size[target]
            taken = min(count, self.size)
            positions = self.rng.choice(count, taken, replace=False)
            positions += positions >= context.skip[target]
            rows = context.rows[context.start[target] + positions]
            embeddings[side, :taken] = (table[rows] - self.mean) / self.scale
            mask[side, :taken] = True
        return embeddings, mask, np.int64(self.host.label[target])


class SASNet(nn.Module):
    """`sasnet_jax.model.sasnet`, `cross_attention="pooled"`, `review_features="text"`."""

    def __init__(self, config: TrainConfig, embedding_dim: int):
        super().__init__()
        d = config.width
        self.project = nn.Linear(embedding_dim, d)
        self.no_reviews = nn.Parameter(0.02 * torch.randn(d))
        self.encoder = nn.ModuleList([_Block(config) for _ in range(config.depth)])
        self.cross = _Block(config)
        self.hidden, self.classify = nn.Linear(2 * d, d), nn.Linear(d, config.classes)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, embeddings: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """[b, 2, s, e] and [b, 2, s] -> logits [b, c]."""
        b, sides, s, _ = embeddings.shape
        tokens = nn.functional.gelu(self.project(embeddings), approximate="tanh").flatten(0, 1)
        mask = mask.flatten(0, 1)
        alone = torch.zeros_like(mask)
        alone[:, 0] = ~mask.any(dim=1)
        tokens = torch.where(alone[..., None], self.no_reviews, tokens)
        mask = mask | alone
        for block in self.encoder:
            tokens = block(tokens, tokens, mask)
        pooled = (tokens * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        users, businesses = pooled.view(b, sides, 1, -1).unbind(dim=1)
        users = self.cross(users, businesses, torch.ones_like(mask[:b, :1]))
        pair = torch.cat([users[:, 0], businesses[:, 0]], dim=-1)
        hidden = nn.functional.gelu(self.hidden(pair), approximate="tanh")
        return self.classify(self.dropout(hidden))


class _Block(nn.Module):
    def __init__(self, config: TrainConfig):
        super().__init__()
        d = config.width
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attention = nn.MultiheadAttention(d, config.heads, batch_first=True)
        self.expand, self.contract = (
            nn.Linear(d, config.feed_forward),
            nn.Linear(config.feed_forward, d),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, queries: torch.Tensor, keys: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        normed, normed_keys = self.attention_norm(queries), self.attention_norm(keys)
        attended, _ = self.attention(
            normed, normed_keys, normed_keys, key_padding_mask=~mask, need_weights=False
        )
        x = queries + self.dropout(attended)
        hidden = nn.functional.gelu(self.expand(self.feed_forward_norm(x)), approximate="tanh")
        return x + self.dropout(self.contract(hidden))
