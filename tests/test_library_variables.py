"""A machine without a network is told at once, not after a minute of tries."""

import socket

import pytest

from align.library_variables import without_network


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
