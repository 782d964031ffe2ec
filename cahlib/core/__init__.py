"""What every part stands on: settings, records, errors, and files that are written whole."""
