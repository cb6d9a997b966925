"""The methods: each a store and a list of plugins."""

from avalanche_compress.strategies.ada_qpacknet import AdaQPackNet
from avalanche_compress.strategies.base import CompressedStrategy
from avalanche_compress.strategies.cacl import CACL
from avalanche_compress.strategies.halrp import HALRP
from avalanche_compress.strategies.packnet import PackNet
from avalanche_compress.strategies.tinysubnets import TinySubNets
from avalanche_compress.strategies.wsn import WSN

__all__ = ["CACL", "HALRP", "WSN", "AdaQPackNet", "CompressedStrategy", "PackNet", "TinySubNets"]
