"""Every task has low-bit values of its own in 32-bit slots: Ada-QPacknet."""
