"""Statistics at inference: one file for each way to take them."""
