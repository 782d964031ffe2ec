"""The commands of `cah` beside a run, each in a file of its own."""
