"""From Parquet to tables: the paper's numbers, recomputed from stored predictions. No Ray, no torch."""
