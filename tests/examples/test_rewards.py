"""The commands of examples/rewards, as they stand there, for two short steps on a tiny random model."""

import importlib
import json
import shutil
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from command_line import answer, stand_in

HERE = Path(__file__).resolve().parents[2] / "examples" / "rewards"
SHORT = (
    "ppo.steps=2 rollout=hf rollout.max_new_tokens=20 ppo.max_prompt_tokens=48 evaluate.samples=4 evaluate.show=0 "
    "ppo.eval_every=1 ppo.eval_prompts=2"
)
LOGGED = {
    "reward=http": ["rewards/http/mean"],
    "reward=sum": [
        "rewards/brief/weight", "rewards/brief/deviation", "rewards/length/mean", "rewards/again/deviation",
    ],
    "reward=gate": ["rewards/score/mean", "rewards/condition/mean", "rewards/open"],
    "reward=by_column": ["rewards/sum/mean", "rewards/default/mean"],
    "ppo.dynamic_sampling=3": ["rollout/alike_share", "rollout/extra_batches"],
}  # fmt: skip
"""The word by which a command is found, and what its metrics hold."""


def command(word: str) -> str:
    lines = (HERE / "README.md").read_text().replace("\\\n", " ").splitlines()
    return next(line for line in lines if line.startswith("align stages") and word in line.split())


@pytest.fixture
def example(tmp_path, monkeypatch):
    for file in HERE.iterdir():
        if file.is_file():
            shutil.copy(file, tmp_path)
    yield from stand_in(tmp_path, monkeypatch)


@pytest.fixture
def url(example, monkeypatch):
    """Where reward_server.py serves."""
    monkeypatch.syspath_prepend(str(example))
    with ThreadingHTTPServer(("127.0.0.1", 0), importlib.import_module("reward_server").Scorer) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/score"
        server.shutdown()


@pytest.mark.parametrize("word", LOGGED)
def test_a_command_of_the_page_runs(example, url, base, capsys, monkeypatch, word):
    monkeypatch.setenv("TOKEN", "s3cret")
    more = SHORT + ("" if "samples_per_prompt" in command(word) else " ppo.batch_size=8")
    if word == "reward=http":
        more += f" reward.url={url} \"reward.headers.Authorization='Bearer $TOKEN'\""
    said = answer(capsys, f"{command(word).removeprefix('align ').replace('FOLDER', base)} {more}")
    assert said.status == 0, said.err
    run = (example / "runs" / "run" / "latest").resolve()
    lines = [json.loads(line) for line in (run / "ppo" / "metrics.jsonl").read_text().splitlines()]
    for name in LOGGED[word]:
        assert all(name in line for line in lines[1:]), (name, lines[1])
    assert [line["step"] for line in lines] == [0, 1, 2] and lines[2]["val/optimizer_steps"] == 4
    told = [
        file.read_text(errors="replace") for file in run.rglob("*.*") if file.suffix in (".yaml", ".json", ".jsonl")
    ]
    assert told and not any("s3cret" in text for text in told)
