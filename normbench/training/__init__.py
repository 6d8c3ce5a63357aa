"""Training of one trial: ``train(trial)`` returns its record."""
