"""The preference factory: prompts and a model into preference data, preference data into a better model."""
