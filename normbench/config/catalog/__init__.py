"""Every name that an experiment may use, its options, and where its code lives."""
