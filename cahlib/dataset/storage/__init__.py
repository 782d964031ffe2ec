"""Where a dataset's files are kept: a folder, or a URL to which they are uploaded."""
