"""Evaluation with the native engine: recall, perplexity, divergence, calibration. The command is `lola-cpp eval`."""
