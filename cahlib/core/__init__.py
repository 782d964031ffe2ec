"""What every package builds on: settings, records, errors, progress, and atomic files."""
