"""Training and evaluating engagement: what `train objective=engagement` and `evaluate policy=...` do."""
