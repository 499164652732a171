"""Fingerprints change with the bytes of a model, and with nothing else."""

from align.stages.fingerprint import fingerprint, fingerprints


def test_a_fingerprint_follows_the_bytes(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"one")
    (tmp_path / "config.json").write_text("{}")
    first = fingerprint(tmp_path)
    (tmp_path / "card.json").write_text("{}")
    assert fingerprint(tmp_path) == first
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert fingerprint(tmp_path) != first


def test_hub_names_have_none(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert fingerprint("org/name") is None
    assert fingerprints({"path": "org/name", "rm": str(tmp_path)}, None).keys() == {"rm"}
