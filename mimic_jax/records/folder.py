"""Dataset folders: index, opening, fingerprint. One implementation for every kind of record."""

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mimic_jax import files
from mimic_jax.command import InputError
from mimic_jax.records import images, pairs, stereo
from mimic_jax.records.schema import Schema

MANIFEST = "manifest.json"
# The digest of each shard's records, which the fingerprint is made of. Datasets of earlier versions have no such file.
DIGESTS = "digests.json"
# In the folder of a dataset that is being made: what is not yet part of it.
PARTS = ".parts"

_KINDS = {"pairs": pairs, "images": images, "stereo": stereo}
# The commands that make a dataset of each kind.
_MAKERS = {"pairs": "data_prep.mine", "images": "data_prep.label", "stereo": "data_prep.label --records=stereo"}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A finished dataset folder, opened for reading.

    folder: where it is stored.
    schema: its kind of record, and the features that every record has.
    shards, shard_lengths: the files, and the number of records in each.
    """

    folder: Path
    schema: Schema
    shards: tuple[Path, ...]
    shard_lengths: tuple[int, ...]

    def __len__(self) -> int:
        return sum(self.shard_lengths)

    @property
    def kind(self) -> str:
        """The kind of record: "pairs", "images" or "stereo"."""
        return self.schema.kind

    @property
    def patches(self) -> int:
        """The length of every correspondence of a dataset of pairs."""
        return self.schema.features["correspondence"].shape[0]

    def decode(self, record: bytes) -> Any:
        """A record of this dataset from its bytes.

        Raises:
          ValueError: the bytes are not a record of this dataset's schema.
        """
        return self.schema.decode(record)

    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in order of their indices; none where the records have no classes."""
        return tuple(self.manifest().get("classes", ()))

    def fingerprint(self) -> str:
        """Identifies the dataset's content: it changes when any record or the sharding changes.

        Without `digests.json` (datasets of earlier versions) it is the digest of `dataset_info.json` only, so that runs
        on such datasets resume.
        """
        digest = hashlib.sha256((self.folder / "dataset_info.json").read_bytes())
        if (self.folder / DIGESTS).is_file():
            digest.update((self.folder / DIGESTS).read_bytes())
        return digest.hexdigest()

    def manifest(self) -> dict:
        """What the command that made the dataset wrote about it: settings, versions, and counts per scene."""
        return json.loads((self.folder / MANIFEST).read_text())


def shard_name(split: str, index: int, shards: int, kind: str = pairs.NAME) -> str:
    """The file name of shard `index` of `shards`, as TensorFlow Datasets spells it."""
    return f"{kind}-{split}.array_record-{index:05d}-of-{shards:05d}"


def count_names(kind: str) -> tuple[str, str]:
    """The names, in a manifest's entries, of how many records were tried and how many were kept."""
    return ("pairs_tried", "pairs_kept") if kind == pairs.NAME else ("tried", "kept")


def write_index(
    folder: str | os.PathLike,
    *,
    split: str,
    shard_lengths: Sequence[int],
    num_bytes: int,
    schema: Schema | None = None,
    patches: int = 0,
) -> None:
    """Writes `features.json` and `dataset_info.json`, which make a folder of finished shards a dataset.

    Args:
      folder: where the shards, named by `shard_name`, already are.
      split: the name of the split, "train" by default elsewhere.
      shard_lengths: records in each shard, in order.
      num_bytes: bytes of all records together.
      schema: of the records. None: pairs.
      patches: for pairs without a schema, the length of every record's correspondence.
    """
    import tensorflow_datasets as tfds

    schema = schema or pairs.schema(patches)
    split_info = tfds.core.SplitInfo(
        name=split,
        shard_lengths=list(shard_lengths),
        num_bytes=num_bytes,
        filename_template=tfds.core.ShardedFileTemplate(
            data_dir=os.fspath(folder), dataset_name=schema.kind, split=split, filetype_suffix="array_record"
        ),
    )
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=schema.kind,
        version=tfds.core.Version(schema.version),
        data_dir=os.fspath(folder),
        module_name="mimic_jax.records",
    )
    info = tfds.core.DatasetInfo(builder=identity, features=schema.tfds_features(), description=schema.description)
    info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
    info.set_splits(tfds.core.splits.SplitDict([split_info]))
    info.write_to_directory(folder)


def open_dataset(folder: str | os.PathLike, split: str = "train", kinds: Sequence[str] | None = None) -> Dataset:
    """Opens a dataset folder and checks that it is whole and of a known schema.

    Args:
      folder: the dataset.
      split: which of its splits.
      kinds: the kinds of record that are of use to the caller, as ("images",). None: any.

    Raises:
      InputError: the folder is missing, is not a dataset, has another kind or schema, lacks the split or a shard, or is
        empty.
    """
    import tensorflow_datasets as tfds

    folder = files.as_path(folder)
    maker = " or ".join(f"`python -m {_MAKERS[kind]}`" for kind in kinds or ("pairs", "images"))
    if not folder.is_dir():
        raise InputError(f"{folder}: no such dataset folder; {maker} makes one")
    if not (folder / "features.json").is_file() or not (folder / "dataset_info.json").is_file():
        raise InputError(
            f"{folder}: not a finished dataset (features.json or dataset_info.json is missing); "
            f"give the --output of a {maker} that kept records"
        )
    try:
        info = tfds.builder_from_directory(folder).info
        found = dict(info.features)
        name = info.name
    except Exception as error:  # tfds reports a damaged index by many exception types
        raise InputError(f"{folder}: its dataset_info.json or features.json cannot be read ({error})") from error
    schema = _schema(folder, name, found, info.features.to_json())
    if kinds is not None and schema.kind not in kinds:
        raise InputError(
            f"{folder}: a dataset of {schema.kind}; one of {' or '.join(kinds)} is needed, which {maker} makes"
        )
    if split not in info.splits:
        raise InputError(f"{folder}: has no split {split!r}, only {sorted(info.splits)}")
    lengths = tuple(info.splits[split].shard_lengths)
    shards = tuple(folder / shard_name(split, index, len(lengths), schema.kind) for index in range(len(lengths)))
    for shard, length in zip(shards, lengths, strict=True):
        if not shard.is_file():
            raise InputError(f"{shard}: this shard of the dataset is missing; copy it again or make the dataset again")
        # A shard in a bucket would have to be copied here to be counted.
        if not files.is_remote(shard) and _count_records(shard) != length:
            raise InputError(f"{shard}: this shard is damaged or cut short; copy it again or make the dataset again")
    if not sum(lengths):
        raise InputError(f"{folder}: the dataset has no {schema.kind} in split {split!r}")
    return Dataset(folder, schema, shards, lengths)


def scene_spans(manifest: dict) -> dict[str, range]:
    """The indices of each scene's records in a finished dataset, by the scene's name in its manifest.

    Records are written in the order of the manifest's scenes, through all shards in turn.
    """
    _, kept = count_names(manifest.get("kind", pairs.NAME))
    counts = [entry[kept] for entry in manifest["scenes"].values()]
    ends = itertools.accumulate(counts)
    return {name: range(end - count, end) for name, count, end in zip(manifest["scenes"], counts, ends, strict=True)}


def _schema(folder: Path, name: str, features: dict[str, Any], stored: Any) -> Schema:
    """The schema of a dataset whose `features.json` has these features."""
    if name not in _KINDS:
        raise InputError(f"{folder}: a dataset of another schema ({name!r}); only {', '.join(_KINDS)} can be read")
    try:
        schema = _KINDS[name].schema_like(features)
    except (AttributeError, IndexError, TypeError) as error:
        raise InputError(f"{folder}: a dataset of another schema (types); one of {name} is needed") from error
    if stored != schema.tfds_features().to_json():
        ours, theirs = set(schema.features), set(features)
        different = f"missing {sorted(ours - theirs)}, unknown {sorted(theirs - ours)}" if ours != theirs else "types"
        raise InputError(f"{folder}: a dataset of another schema ({different}); one of {name} is needed")
    return schema


def _count_records(shard: Path) -> int | None:
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        reader = ArrayRecordReader(os.fspath(shard))
        count = reader.num_records()
        reader.close()
    except (RuntimeError, ValueError, IndexError):  # array_record has no exception of its own
        return None
    return count
