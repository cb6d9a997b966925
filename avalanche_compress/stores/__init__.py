"""How the weights of all tasks are kept: one store behind each weight of a network."""

from avalanche_compress.stores.base import LowRankWeight, Place, Store, WeightStore
from avalanche_compress.stores.factored import FactoredStore
from avalanche_compress.stores.masked import MaskedStore
from avalanche_compress.stores.perturbed import PerturbedStore
from avalanche_compress.stores.private import PrivateStore
from avalanche_compress.stores.slotted import SlottedStore
from avalanche_compress.stores.subnetwork import SubnetworkStore
from avalanche_compress.stores.values import Values, decoded

__all__ = [
    "FactoredStore",
    "LowRankWeight",
    "MaskedStore",
    "PerturbedStore",
    "Place",
    "PrivateStore",
    "SlottedStore",
    "Store",
    "SubnetworkStore",
    "Values",
    "WeightStore",
    "decoded",
]
