"""Data sets: one file for each, and what decodes, keeps and batches them."""
