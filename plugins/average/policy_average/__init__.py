"""A stage that averages the weights of two policies."""
