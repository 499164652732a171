"""A missing network is found at once, not after a minute of tries; noise of libraries is silent."""

import logging
import socket
import warnings

import pytest
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from align.library_variables import quiet, without_network


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def unknown(*args):
    raise socket.gaierror("unknown name")


def test_without_a_network_the_hubs_libraries_look_into_their_cache_alone(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert without_network()
    from huggingface_hub import is_offline_mode

    assert is_offline_mode()


def test_with_a_network_or_a_proxy_they_ask_the_hub(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args: [])
    assert not without_network()
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setenv("HTTPS_PROXY", "a proxy")
    assert not without_network()


def warned(silenced: bool) -> list[str]:
    """The first words of what PEFT warns of on a Conv1D with a pattern that matches nothing, and of one more."""
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8))
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        if silenced:
            quiet()
        get_peft_model(model, LoraConfig(target_modules=["c_attn"], rank_pattern={"nowhere": 2}))
        warnings.warn("a user's own", stacklevel=1)
    return [str(one.message)[:14] for one in found]


def test_warnings_of_libraries_on_what_align_deals_with_are_silent_and_others_are_not(caplog, monkeypatch):
    assert warned(silenced=False) == ["fan_in_fan_out", "The following ", "a user's own"]
    assert warned(silenced=True) == ["a user's own"]
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    for name, value in {"disabled": False, "propagate": False, "handlers": [caplog.handler]}.items():
        monkeypatch.setattr(logger, name, value)  # whatever other libraries' set-up of logging left
    caplog.set_level(logging.WARNING, logger.name)
    logger.warning("Failed to load CPU gemm_4bit_forward from %s", "nowhere")
    logger.warning("another")
    assert caplog.messages == ["another"]
