"""Pure functions on tensors: quantisers, masks, low-rank terms and byte sections."""

from avalanche_compress.codec.allocation import Choice, allocate, smallest_total
from avalanche_compress.codec.bits import pack_bits, pack_mask, unpack_bits, unpack_mask
from avalanche_compress.codec.codebook import Codebook, EntropyCoded
from avalanche_compress.codec.errors import CorruptStreamError
from avalanche_compress.codec.finite import all_finite
from avalanche_compress.codec.fixed_point import fixed_point, from_fixed_point
from avalanche_compress.codec.huffman import fused_mask_bits, huffman_bits
from avalanche_compress.codec.kinds import (
    ByRow,
    entries_of,
    read_values,
    skip_values,
    write_values,
)
from avalanche_compress.codec.kmeans import kmeans_1d
from avalanche_compress.codec.low_rank import (
    Factors,
    LowRankWeight,
    break_even_rank,
    factored_linear,
    saves_work,
    truncate_product,
)
from avalanche_compress.codec.masks import (
    decode_mask,
    encode_mask,
    recall_mask,
    recall_mask_among,
)
from avalanche_compress.codec.quantise import (
    quantise_codebook,
    quantise_entropy,
    quantise_fixed_point,
)
from avalanche_compress.codec.selection import (
    ThresholdWindow,
    kept_count,
    kth_smallest,
    magnitude_mask,
    top_mask_,
    top_threshold,
    where_top,
)
from avalanche_compress.codec.steps import Steps, quantise_steps
from avalanche_compress.codec.stream import ByteReader, ByteWriter, bytes_tensor
from avalanche_compress.codec.values import (
    Constant,
    FixedPoint,
    Float,
    Half,
    Values,
)

__all__ = [
    "ByRow",
    "ByteReader",
    "ByteWriter",
    "Choice",
    "Codebook",
    "Constant",
    "CorruptStreamError",
    "EntropyCoded",
    "Factors",
    "FixedPoint",
    "Float",
    "Half",
    "LowRankWeight",
    "Steps",
    "ThresholdWindow",
    "Values",
    "all_finite",
    "allocate",
    "break_even_rank",
    "bytes_tensor",
    "decode_mask",
    "encode_mask",
    "entries_of",
    "factored_linear",
    "fixed_point",
    "from_fixed_point",
    "fused_mask_bits",
    "huffman_bits",
    "kept_count",
    "kmeans_1d",
    "kth_smallest",
    "magnitude_mask",
    "pack_bits",
    "pack_mask",
    "quantise_codebook",
    "quantise_entropy",
    "quantise_fixed_point",
    "quantise_steps",
    "read_values",
    "recall_mask",
    "recall_mask_among",
    "saves_work",
    "skip_values",
    "smallest_total",
    "top_mask_",
    "top_threshold",
    "truncate_product",
    "unpack_bits",
    "unpack_mask",
    "where_top",
    "write_values",
]
