"""What can be asked for: trials, experiments and the names they use. Nothing here loads torch."""
