"""What command lines choose from, and take by default; nothing is imported, so help is quick."""

SCENARIOS = ("task", "class")
"""With task labels at test, or without and all classes in one head."""
RULES = ("entropy", "energy", "prototype", "gaussian@first", "triangular@first", "ridge@first")
"""How our strategies infer tasks, sample by sample, unless other rules or layers are asked for."""
FIRST_STREAMS = ("permuted_digits", "split_digits")
"""What is compared by default: one stream on which naive training forgets, one that is easy."""
ENGINES = ("local", "ray")
"""Who does the runs."""
DEVICES = ("auto", "cpu", "cuda")
NAMES = ("series", "avalanche")
"""What W&B calls what it is told."""
TRACKING = ("off", "offline", "online")
"""Whether runs are logged to Weights & Biases, and when they are uploaded."""
SAVE_EVERY = 60.0
"""Seconds between two states within a task of ours, at least."""

FEW_BITS = tuple(f"independent_{bits}bit" for bits in (8, 4, 3, 2))
"""Strategies: dense networks of their own at fewer and fewer bits."""
