"""Greedy decoding by vLLM with log-probabilities at a temperature."""

from __future__ import annotations

from typing import Any

GREEDY_TEMPERATURE = "align_temperature"


def greedy_at_a_temperature() -> type:
    """A logits processor that divides a greedy row's logits by the temperature of its log-probabilities.

    vLLM takes greedy for temperature 0 and reports log-probabilities at 1; the highest logit stays so.
    """
    from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

    class GreedyAtATemperature(AdapterLogitsProcessor):
        @classmethod
        def validate_params(cls, params: Any) -> None:
            return None

        def is_argmax_invariant(self) -> bool:
            return False  # vLLM leaves those that are out of greedy decoding

        def new_req_logits_processor(self, params: Any) -> Any:
            temperature = (params.extra_args or {}).get(GREEDY_TEMPERATURE, 1.0)
            return None if temperature == 1.0 else lambda output_ids, logits_V: logits_V / temperature

    return GreedyAtATemperature
