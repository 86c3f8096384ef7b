"""Keys and values of clean latents, layer by layer, in slots of one latent each. Keys have no positions yet.

All memory is taken when it is made: it does not grow with the video.

Legend: B videos, S slots, T tokens of a latent, N tokens, H heads, D channels of a head, F latents.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from miga.backbones.wan.causal.rope import Rope
from miga.cached_call import Compression


def cache_bytes(num_slots: int, num_layers: int, tokens: int, width: int, itemsize: int, batch: int = 1) -> int:
    """Of keys and values: `slots x 2 x layers x tokens x width x bytes a number`, for each video."""
    return batch * num_slots * 2 * num_layers * tokens * width * itemsize


class KvCache:
    """The cache of one video, or of a batch of videos in step.

    Args:
        batch: videos.
        num_slots: latents that it holds at most, those being made included.
        num_layers, num_heads, head_channels: of the network.
        tokens: of a latent.
        rope: the positions that keys get when they are read.
        dtype, device: of keys and values.

    Attributes:
        rope: see above.
        text: what the network keeps of the prompts beside it: the embeddings, and their keys and values by layer.
    """

    def __init__(
        self,
        batch: int,
        num_slots: int,
        num_layers: int,
        num_heads: int,
        head_channels: int,
        tokens: int,
        rope: Rope,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (batch, num_slots * tokens, num_heads, head_channels)
        with torch.inference_mode(False):  # calls inside of that mode and outside of it write to them
            self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]
            self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        self.num_slots = num_slots
        self.tokens = tokens
        self.rope = rope
        self.text: tuple[list[torch.Tensor], list[tuple[torch.Tensor, ...]]] | None = None
        self._cells: list[torch.Tensor | None] = [None] * num_layers
        self._queries: list[torch.Tensor | None] = [None] * num_layers

    @property
    def nbytes(self) -> int:
        """Of keys and values."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    def joined(self, others: Sequence[KvCache]) -> JoinedCaches:
        """This cache of one video and those of others, for calls over all of them at once."""
        return JoinedCaches([self, *others])

    def is_mixed(self, layer: int) -> bool:
        """Whether tokens of a slot may be of several latents, chosen by a compression."""
        return self._cells[layer] is not None

    def write(self, layer: int, key_BNHD: torch.Tensor, value_BNHD: torch.Tensor, slots: Sequence[int]) -> None:
        """Keeps keys and values of latents, each in its slot; -1: not."""
        for number, slot in enumerate(slots):
            if slot >= 0:
                own, kept = self._range(number), self._range(slot)
                self.keys[layer][:, kept] = key_BNHD[:, own]
                self.values[layer][:, kept] = value_BNHD[:, own]
                if (cell_BN := self._cells[layer]) is not None:
                    cell_BN[:, kept] = torch.arange(self.tokens, device=cell_BN.device)

    def read(self, layer: int, slots: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Keys, values `[B, N, H, D]` of slots in that order, and which token of its latent each is (None: in order).

        Slots that follow one another are a view, no copy.
        """
        cells = self._cells[layer]
        if list(slots) == list(range(slots[0], slots[0] + len(slots))):
            part = slice(slots[0] * self.tokens, (slots[-1] + 1) * self.tokens)
            return self.keys[layer][:, part], self.values[layer][:, part], None if cells is None else cells[:, part]
        index_N = self._index(slots)
        key, value = (each[layer].index_select(1, index_N) for each in (self.keys, self.values))
        return key, value, None if cells is None else cells.index_select(1, index_N)

    def blend(self, into: Sequence[int], evicted: Sequence[int], keep: float) -> None:
        """`into <- keep * into + (1 - keep) * evicted`, slot by slot, in every layer. Source: Reward Forcing."""
        into_N, evicted_N = self._index(into), self._index(evicted)
        for tensor in (*self.keys, *self.values):
            tensor[:, into_N] = keep * tensor[:, into_N] + (1.0 - keep) * tensor[:, evicted_N]

    def keep_queries(self, layer: int, query_BNHD: torch.Tensor) -> None:
        """Keeps the queries of clean latents, summed over each latent's tokens, for the next compression."""
        self._queries[layer] = query_BNHD.unflatten(1, (-1, self.tokens)).sum(2)

    def compress(self, layer: int, query_BNHD: torch.Tensor, what: Compression) -> None:
        """Keeps of the candidates the tokens with the largest products with all queries together.

        Scores are summed over heads, queries and keys have no positions in them, and those that stay keep their order:
        our reading of Deep Forcing's participative compression.
        """
        score_BHD = query_BNHD.sum(1)
        if what.num_query_latents and (past_BFHD := self._queries[layer]) is not None:
            score_BHD = score_BHD + past_BFHD[:, -what.num_query_latents :].sum(1)
        index_N = self._index(what.candidates)
        key_BNHD, value_BNHD = self.keys[layer][:, index_N], self.values[layer][:, index_N]
        cell_BN = self.cells_of(layer)[:, index_N]
        score_BN = (key_BNHD.float() * score_BHD[:, None].float()).sum((2, 3))
        chosen_BN = score_BN.topk(len(what.into) * self.tokens, dim=1).indices.sort(dim=1).values
        into_N = self._index(what.into)
        chosen_BNHD = chosen_BN[..., None, None].expand(-1, -1, *key_BNHD.shape[2:])
        self.keys[layer][:, into_N] = key_BNHD.gather(1, chosen_BNHD)
        self.values[layer][:, into_N] = value_BNHD.gather(1, chosen_BNHD)
        self.cells_of(layer)[:, into_N] = cell_BN.gather(1, chosen_BN)

    def cells_of(self, layer: int) -> torch.Tensor:
        """Which token of its latent every cached token `[B, N]` is."""
        cells = self._cells[layer]
        if cells is None:
            batch, device = len(self.keys[layer]), self.keys[layer].device
            with torch.inference_mode(False):
                cells = torch.arange(self.tokens, device=device).repeat(batch, self.num_slots)
            self._cells[layer] = cells
        return cells

    def _range(self, number: int) -> slice:
        return slice(number * self.tokens, (number + 1) * self.tokens)

    def _index(self, slots: Sequence[int]) -> torch.Tensor:
        device = self.keys[0].device
        first = torch.tensor(slots, device=device)[:, None] * self.tokens
        return (first + torch.arange(self.tokens, device=device)).flatten()


class JoinedCaches:
    """Caches of several videos as one, of as many videos, for calls that do the same in all of them.

    Keys and values stay where they are: what a layer reads is put together for the time of that layer.

    Args:
        caches: of one video each, in one shape, under the same positions.

    Attributes:
        text: as of `KvCache`, of all videos.
    """

    def __init__(self, caches: Sequence[KvCache]) -> None:
        self.caches = list(caches)
        self.rope, self.tokens, self.num_slots = caches[0].rope, caches[0].tokens, caches[0].num_slots
        self.text: tuple[list[torch.Tensor], list[tuple[torch.Tensor, ...]]] | None = None
        for cache in caches:
            cache.text = None  # kept here from now on

    def is_mixed(self, layer: int) -> bool:
        """See `KvCache.is_mixed`."""
        return any(cache.is_mixed(layer) for cache in self.caches)

    def write(self, layer: int, key_BNHD: torch.Tensor, value_BNHD: torch.Tensor, slots: Sequence[int]) -> None:
        """See `KvCache.write`."""
        for cache, key_1NHD, value_1NHD in zip(self.caches, key_BNHD.split(1), value_BNHD.split(1), strict=True):
            cache.write(layer, key_1NHD, value_1NHD, slots)

    def read(self, layer: int, slots: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """See `KvCache.read`."""
        if self.is_mixed(layer):
            for cache in self.caches:
                cache.cells_of(layer)  # in order, where none was chosen yet
        keys, values, cells = zip(*(cache.read(layer, slots) for cache in self.caches), strict=True)
        return torch.cat(keys), torch.cat(values), None if cells[0] is None else torch.cat(cells)

    def keep_queries(self, layer: int, query_BNHD: torch.Tensor) -> None:
        """See `KvCache.keep_queries`."""
        for cache, query_1NHD in zip(self.caches, query_BNHD.split(1), strict=True):
            cache.keep_queries(layer, query_1NHD)

    def compress(self, layer: int, query_BNHD: torch.Tensor, what: Compression) -> None:
        """See `KvCache.compress`."""
        for cache, query_1NHD in zip(self.caches, query_BNHD.split(1), strict=True):
            cache.compress(layer, query_1NHD, what)
