"""Ways to turn rewards into advantages, one a file: objects that follow `align.types.Advantage`."""
