"""The arithmetic of normalization, per device."""
