"""What a step, an evaluation and many tasks cost."""
