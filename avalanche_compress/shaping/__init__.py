"""When a task is shaped: plugins that prune, truncate, quantise and hold out data."""
