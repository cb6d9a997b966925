"""Which task a sample is of, where it has no label."""
