"""How a task is trained: the frame of all strategies, and going on after a stop."""
