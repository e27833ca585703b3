"""The rate limiter between scorers and the learner: who is ahead waits. After Reverb's SampleToInsertRatio."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class RateLimiter:
    """Keeps `sampled` near `ratio` times `inserted`, counted in examples, once `least` examples are there.

    `buffer`, in samples, is how far either side may be ahead. An insert is also allowed wherever fewer than `least` examples
    are held, since a learner that may not sample would wait for ever: only then does the difference leave its band.
    """

    ratio: float
    least: int
    buffer: float
    inserted: int = 0
    sampled: int = 0

    @property
    def difference(self) -> float:
        """How many samples the inserts are ahead; less than 0 where the samples are ahead."""
        return self.ratio * (self.inserted - self.least) - self.sampled

    def may_insert(self, count: int, held: int, begun: int = 0) -> bool:
        """Whether `count` more examples may be scored, where `held` can be drawn and `begun` are being scored."""
        if held + begun < self.least:
            return True
        return self.difference + self.ratio * (begun + count) <= self.buffer

    def may_sample(self, count: int, held: int) -> bool:
        """Whether `count` examples may be drawn of those that are held."""
        return held >= max(self.least, count) and self.difference - count >= -self.buffer

    def state_dict(self) -> dict[str, int]:
        return {"inserted": self.inserted, "sampled": self.sampled}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.inserted, self.sampled = state["inserted"], state["sampled"]


def buffer_of(ratio: float, insert: int, sample: int) -> float:
    """A buffer, in samples, with which neither side waits for the other at once, given how many examples are inserted and
    sampled at a time. (Half the sum of both is the least that lets one of them go on.)"""
    return 2 * max(ratio * insert, sample)
