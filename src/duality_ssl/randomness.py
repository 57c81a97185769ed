"""Seeds derived from the run's: what is drawn depends on (seed, epoch or step, sample) alone."""

import numpy as np

# what a derived seed is for: streams must not coincide
ORDER, AUGMENT, CROP, SUBSET, PROBE, STEP, HOLD_OUT, EVALUATION, CRITERION = range(9)


def derive_seed(purpose: int, *parts: int) -> int:
    """Mix non-negative integers into a seed of 63 bits, the same on every machine."""
    state = np.random.SeedSequence((purpose, *parts)).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))
