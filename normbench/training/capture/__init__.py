"""Training steps captured once and replayed."""
