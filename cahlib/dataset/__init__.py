"""Scores become files: the dataset's layout, its manifests, and what is done to a dataset."""
