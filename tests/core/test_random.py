"""Random numbers: known answers of the generator, and what a number depends on."""

from __future__ import annotations

import pytest
import torch
from helpers.laws import surprise

from safedraft.core.random import Use, philox, uniform


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ("00000000 " * 4, "00000000 " * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff " * 4, "ffffffff " * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            "a4093822 299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_known_answers_of_philox(counter: str, key: str, answer: str) -> None:
    a, b, c, d = (int(word, 16) for word in counter.split())
    first, second = (int(word, 16) for word in key.split())
    words = philox((a, b, c, d), (first, second))
    assert " ".join(f"{word:08x}" for word in words) == answer


def test_a_number_is_made_of_the_first_two_words() -> None:
    # Counter 0 and key 0 are seed 0, position 0 and the first use.
    bits = (0x6627E8D5 >> 5) * 2**26 + (0xE169C58D >> 6)
    assert Use.PROPOSE == 0
    assert uniform(0, 0, Use.PROPOSE) == bits / 2**53


def test_seed_position_and_use_all_matter_in_all_their_bits() -> None:
    seeds = [0, 1, 2**31, 2**32, 2**33, 2**62]
    positions = [0, 1, 2**31, 2**32]
    numbers = {uniform(s, p, use) for s in seeds for p in positions for use in Use}
    assert len(numbers) == len(seeds) * len(positions) * len(Use)


@pytest.mark.parametrize("use", Use)
def test_numbers_are_even(use: Use) -> None:
    numbers = torch.tensor([uniform(seed, 3, use) for seed in range(4000)], dtype=torch.float64)
    assert bool(((numbers >= 0) & (numbers < 1)).all())
    assert (
        surprise((numbers * 50).long().bincount(minlength=50).float(), torch.full((50,), 0.02)) < 4
    )
