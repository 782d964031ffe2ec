"""The notebook: a form, a live view of the run, and its results."""
