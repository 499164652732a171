"""Data of a made-up help desk, its rule of a good completion, and short texts with a topic and a mood."""
