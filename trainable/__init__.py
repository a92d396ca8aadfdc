"""One run: from its spec to its rows in Parquet. Knows nothing of grids, of other runs but its parent, or of Ray."""
