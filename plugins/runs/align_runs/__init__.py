"""Many runs at once: the command `table` sets them side by side, `search` looks for the best settings."""
