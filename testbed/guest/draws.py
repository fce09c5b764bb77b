"""Random numbers that follow from their position alone: what a task draws it can draw again.

numpy.random would do, but each VMX and vCPU would load it anew, for 40 ms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

from testbed.guest.filling import mix

if TYPE_CHECKING:
    from numpy.typing import NDArray

_GOLDEN = (math.sqrt(5) - 1) / 2
_NEARLY_1 = 1e-6  # an exponent so near to 1 is taken for it: the general formula divides by 1 - s


def key(*parts: int) -> int:
    """One word from several numbers."""
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def words(index: NDArray[np.uint64], key_: int, first: int) -> NDArray[np.uint64]:
    """Draws number first + index of the sequence that `key_` names; `index` may be kept."""
    return mix(index + np.uint64((key_ + first) % 2**64))


def uniform(draws: NDArray[np.uint64], count: int) -> NDArray[np.int64]:
    """Numbers 0 .. count - 1 from draws, in place; count below 2^32."""
    draws >>= np.uint64(32)
    draws *= np.uint64(count)
    draws >>= np.uint64(32)
    return draws.view(np.int64)


@dataclass(frozen=True, slots=True)
class Zipf:
    """Picks one of `count` things, the r-th most often with probability ~ r^-exponent.

    By the inverse of the distribution function of the bounded Pareto distribution from 1/2 to
    count + 1/2, rounded: the first rank comes up to 10 % too often, the second 2 %, later ones
    as the law says. An exponent of 0 is uniform. Where the r-th lies follows from r alone:
    neighbours in rank are far apart, as hot pages of a real guest are.
    """

    count: int
    exponent: float

    def _power(self, rank: NDArray[np.float64] | float) -> NDArray[np.float64]:
        if abs(1 - self.exponent) < _NEARLY_1:
            return np.asarray(np.log(rank), np.float64)
        return np.asarray(np.power(rank, 1 - self.exponent), np.float64)

    def ranks(self, draws: NDArray[np.uint64]) -> NDArray[np.int64]:
        """A rank, 0 the most frequent, from each draw."""
        low, high = float(self._power(0.5)), float(self._power(self.count + 0.5))
        at = (draws >> np.uint64(11)).astype(np.float64)
        at *= (high - low) / 2**53
        at += low
        np.clip(at, min(low, high), max(low, high), out=at)  # rounding may pass them
        if abs(1 - self.exponent) < _NEARLY_1:
            np.exp(at, out=at)
        else:
            np.power(at, 1 / (1 - self.exponent), out=at)
        at -= 0.5
        ranks = at.astype(np.int64)
        return np.clip(ranks, 0, self.count - 1, out=ranks)

    def places(self, draws: NDArray[np.uint64]) -> NDArray[np.int64]:
        """A place, 0 .. count - 1, from each draw."""
        ranks = self.ranks(draws)
        ranks *= stride(self.count)
        ranks %= self.count
        return ranks

    def probabilities(self) -> NDArray[np.float64]:
        """How often each rank is picked."""
        bounds = self._power(np.arange(self.count + 1, dtype=np.float64) + 0.5)
        shares: NDArray[np.float64] = np.diff(bounds) / (bounds[-1] - bounds[0])
        return shares


def stride(count: int) -> int:
    """By how much places of neighbouring ranks differ: coprime to `count`, near the golden ratio.

    So multiplication by it is a permutation modulo `count`, and a few ranks in a row are spread
    as evenly as can be.
    """
    wanted = max(1, round(count * _GOLDEN))
    return next(n for n in range(wanted, 2 * count + 1) if math.gcd(n, count) == 1)
