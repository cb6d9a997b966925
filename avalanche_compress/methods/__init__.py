"""The methods, a folder each: a store, the plugins that shape a task, and the strategy.

Each registers itself when it is imported, here in the order of all tables.
"""

# ruff: isort: skip_file
from avalanche_compress.methods.subnetworks.packnet import PackNet
from avalanche_compress.methods.subnetworks.wsn import WSN
from avalanche_compress.methods.subnetworks.tinysubnets import TinySubNets
from avalanche_compress.methods.ada_qpacknet.strategy import AdaQPackNet
from avalanche_compress.methods.cacl.strategy import CACL
from avalanche_compress.methods.halrp.strategy import HALRP
from avalanche_compress.methods.lora.strategy import LoRA

__all__ = ["CACL", "HALRP", "WSN", "AdaQPackNet", "LoRA", "PackNet", "TinySubNets"]
