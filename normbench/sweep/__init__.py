"""Sweeps: from missing trials to stored records."""
