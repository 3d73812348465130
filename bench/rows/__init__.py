"""One file a row, or a few rows that are measured together."""
