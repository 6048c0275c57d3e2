"""The records of a selection of examples, of any kind: read, and located, by the index of the example."""

import bisect
import dataclasses
import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grain
import numpy as np

from mimic_jax import records
from mimic_jax.command import InputError
from mimic_jax.data.mixture import Examples, Mixture, all_examples, record_source

# Records read at the same time by read_records. A bucket answers each after a while.
READERS = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
    """Reads and locates the records of examples. A pickled copy opens the shards again.

    ends: the number of examples up to the end of each dataset.
    sources: the records of each dataset.
    """

    examples: Examples
    ends: tuple[int, ...]
    sources: tuple[grain.sources.ArrayRecordDataSource, ...]

    @classmethod
    def of(cls, examples: Examples) -> "Stored":
        """Opens the shards of the examples' datasets.

        Raises:
          InputError: a shard is missing or damaged.
        """
        try:
            sources = tuple(map(record_source, examples.mixture.datasets))
        except (RuntimeError, ValueError) as error:
            raise InputError(f"a shard cannot be read ({error}); copy it again or make the dataset again") from error
        return cls(examples, tuple(itertools.accumulate(examples.lengths())), sources)

    def read(self, index: int) -> Any:
        """The decoded record of an example; its images stay encoded.

        Raises:
          InputError: the record cannot be read.
        """
        dataset, record = self._find(index)
        try:
            return self.examples.mixture.datasets[dataset].decode(self.sources[dataset][record])
        except (RuntimeError, ValueError) as error:  # array_record has no exception of its own
            raise InputError(
                f"{self.locate(index)} cannot be read ({error}); copy the shard again or make the dataset again"
            ) from error

    def locate(self, index: int) -> str:
        """The shard of an example, and the number of its record there. Nothing is read."""
        number, record = self._find(index)
        dataset = self.examples.mixture.datasets[number]
        for shard, length in zip(dataset.shards, dataset.shard_lengths, strict=True):
            if record < length:
                return f"record {record} of {shard}"
            record -= length
        raise IndexError(index)

    def _find(self, index: int) -> tuple[int, int]:
        """The number of an example's dataset, and of its record in the dataset."""
        if not 0 <= index < self.ends[-1]:
            raise IndexError(index)
        number = bisect.bisect_right(self.ends, index)
        selected = self.examples.indices[number]
        within = index - (self.ends[number - 1] if number else 0)
        return number, within if selected is None else int(selected[within])


def read_records(examples: Examples | records.Dataset, indices: Sequence[int]) -> list[Any]:
    """The decoded records at given indices of the examples, or of a dataset.

    Raises:
      InputError: a record cannot be read.
    """
    if isinstance(examples, records.Dataset):
        examples = all_examples(Mixture((examples,)))
    stored = Stored.of(examples)
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(stored.read, np.asarray(indices, int).tolist()))
