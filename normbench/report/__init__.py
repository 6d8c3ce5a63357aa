"""From records to what a reader sees. Nothing here loads torch."""
