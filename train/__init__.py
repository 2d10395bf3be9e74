"""The trainer: objectives, log-probs and the loop. Knows tensors and tokens, never the store."""
