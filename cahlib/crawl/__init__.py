"""From what is read to candidates: WAT files, their pages, links and captions."""
