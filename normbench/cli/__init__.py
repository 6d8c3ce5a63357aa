"""The command line: commands, and every word they print."""
