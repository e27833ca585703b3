"""The rate limiter: the ratio stays within its band, and the two sides never wait for each other."""

import numpy as np
import pytest
from curate.training.limiter import RateLimiter, buffer_of


@pytest.mark.parametrize("seed", range(10))
def test_the_ratio_stays_in_its_band_and_somebody_may_always_go_on(seed):
    rng = np.random.default_rng(seed)
    ratio, insert, sample = rng.choice([0.1, 0.2, 0.5, 1.0]), int(rng.integers(1, 50)), int(rng.integers(1, 30))
    least = int(np.ceil(sample / ratio))
    limiter = RateLimiter(ratio, least, buffer_of(ratio, insert, sample))
    held, begun = 0, []
    for _ in range(2000):
        may_insert = limiter.may_insert(insert, held, sum(begun))
        may_sample = limiter.may_sample(sample, held)
        assert may_insert or may_sample or begun
        choice = rng.integers(3)
        if choice == 0 and may_insert:
            begun.append(insert)
        elif choice == 1 and may_sample:
            limiter.sampled += sample
            held -= sample
        elif begun:
            done = begun.pop(int(rng.integers(len(begun))))
            if rng.random() < 0.9:  # else the scorer is lost
                limiter.inserted += done
                held += done
        if limiter.inserted >= least:
            forced = ratio * insert  # fewer than `least` were held when the last lease began
            assert -limiter.buffer <= limiter.difference <= limiter.buffer + forced
    assert abs(limiter.sampled / limiter.inserted - ratio) < 0.2 * ratio + 0.02


def test_dropped_examples_do_not_stop_both_sides():
    limiter = RateLimiter(0.5, 10, 5)
    limiter.inserted, limiter.sampled = 100, 0  # the scorers are far ahead
    assert not limiter.may_insert(5, held=40)
    assert not limiter.may_sample(4, held=6)  # but most of it was too old
    assert limiter.may_insert(5, held=6)
    assert not limiter.may_insert(5, held=6, begun=5)


def test_its_state():
    limiter = RateLimiter(0.5, 10, 5, inserted=30, sampled=8)
    again = RateLimiter(0.5, 10, 5)
    again.load_state_dict(limiter.state_dict())
    assert again == limiter and again.difference == 2
