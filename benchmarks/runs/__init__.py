"""One run: its recipe, its learner, what it leaves on disk and how it goes on."""
