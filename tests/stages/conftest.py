"""Fixtures of a whole PPO loop."""

from ppo_loop import context, lora, make_ppo, rows

__all__ = ["context", "lora", "make_ppo", "rows"]
