"""Normalization methods: one file for each."""
