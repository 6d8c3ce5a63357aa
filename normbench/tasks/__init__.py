"""Networks; one file is one family."""
