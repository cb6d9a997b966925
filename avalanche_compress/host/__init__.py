"""What adapts to Avalanche: its data sets, callbacks, checkpoints, loggers and plugins."""
