"""Pure functions on tensors: quantisers, masks, low-rank terms and byte sections."""

from avalanche_compress.coding.bits import pack_bits, pack_mask, unpack_bits, unpack_mask
from avalanche_compress.coding.errors import CorruptStreamError
from avalanche_compress.coding.factorise import (
    balanced_factors,
    leading_svd,
    least_squares_scalings,
    scale_weight,
)
from avalanche_compress.coding.fixed_point import fixed_point, from_fixed_point
from avalanche_compress.coding.huffman import fused_mask_bits, huffman_bits
from avalanche_compress.coding.kmeans import kmeans_1d
from avalanche_compress.coding.low_rank import Factors, truncate
from avalanche_compress.coding.masks import decode_mask, encode_mask, recall_mask
from avalanche_compress.coding.quantised import (
    Codebook,
    FixedPoint,
    Quantised,
    quantise_codebook,
    quantise_fixed_point,
)
from avalanche_compress.coding.rank_selection import ranks_within_budget, select_ranks
from avalanche_compress.coding.selection import (
    kept_count,
    kth_smallest,
    magnitude_mask,
    top_mask_,
)
from avalanche_compress.coding.stream import ByteReader, ByteWriter, bytes_tensor

__all__ = [
    "ByteReader",
    "ByteWriter",
    "Codebook",
    "CorruptStreamError",
    "Factors",
    "FixedPoint",
    "Quantised",
    "balanced_factors",
    "bytes_tensor",
    "decode_mask",
    "encode_mask",
    "fixed_point",
    "from_fixed_point",
    "fused_mask_bits",
    "huffman_bits",
    "kept_count",
    "kmeans_1d",
    "kth_smallest",
    "leading_svd",
    "least_squares_scalings",
    "magnitude_mask",
    "pack_bits",
    "pack_mask",
    "quantise_codebook",
    "quantise_fixed_point",
    "ranks_within_budget",
    "recall_mask",
    "scale_weight",
    "select_ranks",
    "top_mask_",
    "truncate",
    "unpack_bits",
    "unpack_mask",
]
