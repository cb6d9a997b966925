"""Pure functions on tensors: quantisers, masks, low-rank terms and byte sections."""

from avalanche_compress.codec.bits import pack_bits, pack_mask, unpack_bits, unpack_mask
from avalanche_compress.codec.errors import CorruptStreamError
from avalanche_compress.codec.fixed_point import fixed_point, from_fixed_point
from avalanche_compress.codec.huffman import fused_mask_bits, huffman_bits
from avalanche_compress.codec.kmeans import kmeans_1d
from avalanche_compress.codec.low_rank import Factors, truncate
from avalanche_compress.codec.masks import decode_mask, encode_mask, recall_mask
from avalanche_compress.codec.quantised import (
    Codebook,
    FixedPoint,
    Quantised,
    quantise_codebook,
    quantise_fixed_point,
)
from avalanche_compress.codec.selection import kept_count, kth_smallest, magnitude_mask, top_mask_
from avalanche_compress.codec.stream import ByteReader, ByteWriter, bytes_tensor

__all__ = [
    "ByteReader",
    "ByteWriter",
    "Codebook",
    "CorruptStreamError",
    "Factors",
    "FixedPoint",
    "Quantised",
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
    "magnitude_mask",
    "pack_bits",
    "pack_mask",
    "quantise_codebook",
    "quantise_fixed_point",
    "recall_mask",
    "top_mask_",
    "truncate",
    "unpack_bits",
    "unpack_mask",
]
