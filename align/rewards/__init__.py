"""Ways to score completions, one a file: objects that follow `align.types.Reward`."""
