"""The commands of `factory`, by what they work on. Each is a thin skin over one library call."""
