"""What may go wrong: damaged files, killed processes, and what else Avalanche brings."""
