"""Many runs at once: `align table` sets them side by side, `align search` looks for the best settings."""
