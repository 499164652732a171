"""Losses of the policy, one a file: objects or functions that follow `align.types.PolicyLoss`."""
