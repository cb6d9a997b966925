"""Which task a sample is of, where nobody says so: one file a rule."""
