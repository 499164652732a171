"""A chat server ranks a policy's answers in the stage preferences, and another stage learns from them."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import answer, refused, stand_in
from servers import serving
from test_llm_judge import chat, question

from align.stages.preferences import stage as preferences

PAGE = Path(__file__).resolve().parents[2] / "examples" / "rewards"
SHORT = (
    "rollout=hf rollout.max_new_tokens=40 preferences.max_prompt_tokens=48 preferences.samples=16 "
    "preferences.judge.retries=0 evaluate.judge=null +dpo.args.max_steps=1"
)  # a random model ends an answer in six


@pytest.fixture
def here(tmp_path, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    for file in PAGE.iterdir():
        if file.is_file():
            shutil.copy(file, tmp_path)
    yield from stand_in(tmp_path, monkeypatch)


def command(base: str, url: str, more: str = "") -> str:
    """The page's own command, for these."""
    text = (PAGE / "README.md").read_text().replace("\\\n", " ")
    words = next(line for line in text.splitlines() if line.startswith("align stages=[preferences,dpo]"))
    words = words.removeprefix("align ").replace("FOLDER", base).replace("http://localhost:8000/v1", url)
    return f"{words} {SHORT} {more}"


def rows(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def by_length(handler, body) -> None:
    response = question(body).partition("Answer: ")[2].partition("\n\nHow good")[0]
    handler.say(200, chat(f"Score: {len(response) % 6}"))


def test_the_pages_command_ranks_answers_and_a_judge_that_went_away_costs_none_of_them(here, base, capsys, monkeypatch):
    monkeypatch.setattr(preferences, "JUDGED_AT_ONCE", 2)

    def without_credit(handler, body):
        if len(handler.server.seen) > 8:
            handler.say(402, "no credit left")
        else:
            by_length(handler, body)

    with serving(without_credit) as server:
        said = refused(capsys, command(base, server.url), ["'llm_judge'", "status 402, not 200: 'no credit left'"])
    resume = re.search(r"preferences\.resume=\S+", said.out)[0]
    kept = rows(here / "runs" / "run" / "latest" / "preferences" / "completions.jsonl")[1:]
    assert kept and {len(one["extra"]["llm_judge"]) for one in kept} == {16}
    with serving(by_length) as server:  # at another address
        said = answer(capsys, command(base, server.url, resume))
    assert said.status == 0, said.err
    asked = {question(body) for _, body in server.seen}
    assert not any(f"Question: {one['prompt']}\n" in text for one in kept for text in asked)
    assert any("The right answer is" in text for text in asked) and len({text[:9] for text in asked}) > 1
    run = here / "runs" / "run" / "latest"
    ranked = rows(run / "preferences" / "rankings.jsonl")
    for row in ranked:
        assert row["scores"] == pytest.approx([len(text) % 6 / 5 for text in row["completions"]])
    assert rows(run / "preferences" / "completions.jsonl")[1 : 1 + len(kept)] == kept
    assert 1 <= json.loads((run / "dpo" / "card.json").read_text())["rows"] <= len(ranked)
    told = [flat(line) for line in rows(run / "preferences" / "metrics.jsonl")]
    assert {line["unread"] for line in told if "unread" in line} == {0.0}


def flat(line: dict) -> dict:
    return {name.rpartition("/")[2]: value for name, value in line.items()}


def test_a_judge_of_nonsense_ends_the_stage_and_shows_what_it_said(here, base, capsys):
    with serving(lambda handler, body: handler.say(200, chat("Bananas!"))) as server:
        said = refused(capsys, command(base, server.url), ["hold no grade from 0 to 5", "Bananas!", "use another"])
    assert "preferences.samples" not in said.err and not list(here.rglob("rankings.jsonl"))


def test_a_question_about_a_column_that_is_not_there_is_refused_before_a_model_loads(here, base, capsys):
    (here / "question.jinja").write_text("{{ completion }} {{ solution }}")
    words = ["preferences.judge.template=question.jinja wants solution", "columns are task, answer"]
    refused(capsys, command(base, "http://127.0.0.1:9/v1"), words)
    assert not (here / "runs").exists()


@pytest.fixture
def vllm_server(base, tmp_path_factory) -> Iterator[str]:
    """vLLM's own chat server, as `vllm serve` starts it, on the random base with room for the question."""
    folder = shutil.copytree(base, tmp_path_factory.mktemp("judge") / "model")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "max_position_embeddings": 2048}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = (
        f"-m vllm.entrypoints.openai.api_server --model {folder} --served-model-name NAME --host 127.0.0.1 "
        f"--port {port} --dtype float32 --max-num-seqs 16 --enforce-eager --kv-cache-memory-bytes 67108864 "
        "--generation-config vllm"
    )
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([sys.executable, *words.split()], stdout=log, stderr=log, env={**os.environ})
        try:
            while server.poll() is None and not healthy(f"http://127.0.0.1:{port}/health"):
                time.sleep(0.5)
            assert server.poll() is None, (folder / "log").read_text()[-2000:]
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            server.wait(30)


def healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status == 200
    except OSError:
        return False


@pytest.mark.long
@pytest.mark.vllm
def test_a_real_server_of_vllm_judges_with_structured_outputs(here, base, vllm_server, capsys):
    """Held to six numbers, a random model grades; left alone, it writes none, and that is said."""
    held = "\"preferences.judge.args.structured_outputs.choice=['0','1','2','3','4','5']\""
    said = answer(capsys, command(base, vllm_server, f"{held} preferences.judge.temperature=1"))
    assert said.status == 0, said.err
    run = here / "runs" / "run" / "latest"
    judged = rows(run / "preferences" / "completions.jsonl")[1:]
    words = [word for one in judged for word in one["extra"].get("llm_judge", []) if word is not None]
    assert len(words) == sum(sum(one["finished"]) for one in judged)
    assert set(words) <= set("012345") and len(set(words)) > 1
    scores = [score for one in judged for score in one["scores"] if score is not None]
    assert scores == pytest.approx([int(word) / 5 for word in words])
    assert json.loads((run / "dpo" / "card.json").read_text())["rows"] >= 1
    more = "preferences.judge.max_tokens=8 preferences.judge.scale=[100001,100002]"
    refused(
        capsys, command(base, vllm_server, more), ["hold no grade from 100001 to 100002", "(cut off at max_tokens)"]
    )
    wrong = "preferences.judge.model=OTHER"
    refused(
        capsys, command(base, vllm_server, wrong), ["status 404", "The model `OTHER` does not exist", "use another"]
    )
