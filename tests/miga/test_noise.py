"""Noise by name: the same for the same name, independent for any other."""

from __future__ import annotations

import hashlib
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from miga.noise import THREADED_FROM, NamedNoise

SHAPE = (4, 6, 8)


def test_order_and_batching_do_not_matter() -> None:
    together = NamedNoise(3, SHAPE)("push", range(8))
    noise = NamedNoise(3, SHAPE)
    noise("base", range(5))
    torch.randn(7)
    apart = torch.cat([noise("push", [latent]) for latent in reversed(range(8))]).flip(0)
    assert torch.equal(together, apart)
    assert together.shape == (8, *SHAPE)
    assert together.dtype == torch.float32


def test_large_latents_are_drawn_side_by_side_as_one_by_one() -> None:
    """Against NumPy's generator under the key that decisions/0005 gives a name."""
    shape = (8, 64, 64 + 1)
    assert math.prod(shape) >= THREADED_FROM
    together = NamedNoise(3, shape)("step@5", range(-2, 20), candidate=4)
    for row, latent in enumerate(range(-2, 20)):
        key = int.from_bytes(hashlib.sha256(f"3/step@5/{latent}/4".encode()).digest()[:16], "big")
        expected = np.random.Generator(np.random.Philox(key=key)).standard_normal(shape, dtype=np.float32)
        assert np.array_equal(together[row].numpy(), expected)


def test_torchs_own_generator_is_left_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    NamedNoise(0, SHAPE)("base", [0])
    assert torch.equal(torch.rand(3), expected)


def test_every_part_of_the_name_matters() -> None:
    drawn = [
        NamedNoise(seed, SHAPE)(purpose, [latent], candidate)
        for seed, purpose, latent, candidate in itertools.product(
            (0, 1, 2**32, 2**63, 2**64 - 1), ("base", "push", "search@7", "search@14"), (-1, 0, 1, 10), (0, 1, 11)
        )
    ]
    assert len({tuple(noise.flatten()[:4].tolist()) for noise in drawn}) == len(drawn)


def test_standard_normal_and_uncorrelated() -> None:
    noise = NamedNoise(5, SHAPE)("push", range(400)).flatten(1)
    count = noise.numel()
    assert abs(float(noise.mean())) < 5 / count**0.5
    assert abs(float(noise.std()) - 1.0) < 5 / (2 * count) ** 0.5
    assert abs(float((noise**4).mean()) - 3.0) < 5 * (96 / count) ** 0.5
    correlation = (noise @ noise.T / noise.shape[1]).fill_diagonal_(0.0)
    assert float(correlation.abs().max()) < 6 / noise.shape[1] ** 0.5
    neighbours = (noise[:-1] * noise[1:]).mean()
    assert abs(float(neighbours)) < 5 / count**0.5


def test_128_bits_of_the_hash_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's generator reads 32 bits of its seed: among 65,000 names it would repeat itself."""
    drawn = set()
    for bit in range(128):
        digest = (1 << bit).to_bytes(16, "big") + bytes(16)
        monkeypatch.setattr(
            "miga.noise.hashlib.sha256", lambda _, digest=digest: SimpleNamespace(digest=lambda: digest)
        )
        drawn.add(tuple(NamedNoise(0, (1, 1, 2))("push", [0]).flatten().tolist()))
    assert len(drawn) == 128


def test_a_video_keeps_its_noise_from_one_release_to_the_next() -> None:
    expected = torch.tensor([-0.12127160, 0.50660080, 0.62298995])
    assert torch.allclose(NamedNoise(7, (1, 1, 3))("push", [4]).flatten(), expected, atol=1e-6)
