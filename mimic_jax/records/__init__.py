"""Records and dataset folders: what data preparation and training share. Never imports jax.

A dataset is a TensorFlow Datasets folder of ArrayRecord shards that opens without TensorFlow:

    tfds.builder_from_directory(folder).as_data_source("train")

It holds `features.json`, `dataset_info.json`, shards `KIND-SPLIT.array_record-00000-of-00008`, `manifest.json` and
`digests.json`. Each kind of record has a file here with a frozen dataclass and its schema: `pairs`, `images`, `stereo`.
The folder, the shards and the fingerprint are the same for every kind.
"""

from mimic_jax.records import dense, images, pairs, stereo
from mimic_jax.records.folder import (
    DIGESTS,
    MANIFEST,
    PARTS,
    Dataset,
    count_names,
    open_dataset,
    scene_spans,
    shard_name,
    write_index,
)
from mimic_jax.records.images import LabelledImage
from mimic_jax.records.jpeg import Image, decode_image, encode_image, resize
from mimic_jax.records.pairs import NAME, VERSION, Pair, decode, encode
from mimic_jax.records.schema import Feature, Schema
from mimic_jax.records.stereo import Stereo

__all__ = [
    "DIGESTS",
    "MANIFEST",
    "NAME",
    "PARTS",
    "VERSION",
    "Dataset",
    "Feature",
    "Image",
    "LabelledImage",
    "Pair",
    "Schema",
    "Stereo",
    "count_names",
    "decode",
    "decode_image",
    "dense",
    "encode",
    "encode_image",
    "images",
    "open_dataset",
    "pairs",
    "resize",
    "scene_spans",
    "shard_name",
    "stereo",
    "write_index",
]
