"""The ground of every package: settings, records, errors, progress, and atomic files."""
