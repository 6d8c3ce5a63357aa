"""From numbers to verdicts: the rule, the kinds of claims, and which trials to run next. Pure functions."""
