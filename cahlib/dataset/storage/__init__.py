"""The places of a dataset's files: a folder, or a URL to which they are uploaded."""
