"""Every task is a sub-network of one shared tensor: PackNet, WSN, TinySubNets."""
