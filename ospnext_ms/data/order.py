"""In which order training visits the samples: a function of the seed and the step alone, so that resuming is exact.

NumPy only. Samples lie in buckets, one shape each, and a step takes its whole global batch from one bucket.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

# Last key of the random streams, so that no two draws of one epoch share theirs.
_BATCHES, _SAMPLES = 0, 1


class EpochOrder:
    """Order of global batches over endless epochs, each of which visits every sample exactly once.

    A bucket of n samples is read as one stream: its permutation of epoch 0, then that of epoch 1, and so on, cut into
    batches of G. A batch belongs to the epoch in which its last sample lies, so what does not fill a batch at the end
    of an epoch opens the bucket's first batch of the next one: nothing is dropped and nothing repeated. The batches of
    an epoch are shuffled over the buckets.

    Args:
        bucket_sizes: number of samples of each bucket. global_batch: G, samples a step over all ranks.
        seed: of every permutation.

    Raises:
        ValueError: no samples, or `global_batch` below 1.
    """

    def __init__(self, bucket_sizes: Sequence[int], global_batch: int, seed: int):
        if not sum(bucket_sizes):
            raise ValueError("there are no samples to train on")
        if global_batch < 1:
            raise ValueError(f"the global batch is {global_batch}; it must be at least 1")
        self.bucket_sizes = tuple(bucket_sizes)
        self.global_batch = global_batch
        self.seed = seed
        # The permutations in use are those of one epoch and its predecessors; all others can be made again.
        self._permutation = lru_cache(maxsize=4 * len(self.bucket_sizes))(self._draw_permutation)
        self._epoch_batches = lru_cache(maxsize=4)(self._draw_epoch_batches)

    def first_step(self, epoch: int) -> int:
        """Number of steps in all epochs before `epoch`."""
        return sum(epoch * size // self.global_batch for size in self.bucket_sizes)

    def locate(self, step: int) -> tuple[int, int]:
        """(epoch, step inside it) of a global step; ValueError where that is below 0."""
        if step < 0:
            raise ValueError(f"step is {step}; it must be at least 0")
        epoch = step * self.global_batch // sum(self.bucket_sizes)
        while self.first_step(epoch + 1) <= step:
            epoch += 1
        return epoch, step - self.first_step(epoch)

    def batch(self, step: int) -> tuple[int, list[tuple[int, int]]]:
        """The global batch of a step.

        Returns:
            (bucket, [(epoch, index of the sample in the bucket), ...]) with G entries; the epoch is the one the sample
            is visited in, at the start of an epoch it may be the previous one.
        """
        epoch, inside = self.locate(step)
        buckets, numbers = self._epoch_batches(epoch)
        bucket, first = int(buckets[inside]), int(numbers[inside]) * self.global_batch
        size = self.bucket_sizes[bucket]
        places = (divmod(position, size) for position in range(first, first + self.global_batch))
        return bucket, [(visit, int(self._permutation(bucket, visit)[place])) for visit, place in places]

    def _draw_permutation(self, bucket: int, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch, bucket, _SAMPLES]).permutation(self.bucket_sizes[bucket])

    def _draw_epoch_batches(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Bucket and batch number inside the bucket's stream of every step of an epoch, two arrays."""
        starts = [epoch * size // self.global_batch for size in self.bucket_sizes]
        stops = [(epoch + 1) * size // self.global_batch for size in self.bucket_sizes]
        buckets = np.repeat(np.arange(len(starts)), np.subtract(stops, starts))
        buckets = np.random.default_rng([self.seed, epoch, 0, _BATCHES]).permutation(buckets)
        numbers = np.empty_like(buckets)
        for bucket, (start, stop) in enumerate(zip(starts, stops, strict=True)):
            numbers[buckets == bucket] = np.arange(start, stop)
        return buckets, numbers
