"""One network for all tasks: what of a model is shared, and which tensors answer for a task."""
