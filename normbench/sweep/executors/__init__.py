"""Executors: one file for each place to run trials."""
