"""Secrets stand in no file of a run and on no screen, whatever way they come in."""

import json

import pytest
from command_line import answer, refused, stand_in, write_rows
from servers import serving

HEADER, IN_URL, OF_TRL, IN_YAML = "sk-0123456789", "open-sesame", "hf_abcdefgh", "sk-from-a-yaml"
SECRETS = (HEADER, IN_URL, OF_TRL, IN_YAML)
COMMAND = (
    "stages=[sft,ppo] model={base} data@sft.data=prompt_completion sft.data.path=demos.jsonl "
    "ppo.data.path=prompts.jsonl "
    "+sft.args.max_steps=1 +sft.args.hub_token=hf_abcdefgh rollout=hf rollout.max_new_tokens=6 ppo.batch_size=4 "
    "ppo.micro_batch_size=4 ppo.steps=1 evaluate.judge=null tracker=tensorboard local=mine advantage=rloo critic=none "
    "rollout.samples_per_prompt=2 reward=http \"reward.url='{url}'\" reward.retries=0"
)


@pytest.fixture
def here(tmp_path, monkeypatch):
    prompts = [{"prompt": f"a red kite {i}"} for i in range(8)]
    write_rows(tmp_path / "prompts.jsonl", prompts)
    write_rows(tmp_path / "demos.jsonl", [{**row, "completion": " flies"} for row in prompts])
    (tmp_path / "conf" / "local").mkdir(parents=True)
    (tmp_path / "conf" / "local" / "mine.yaml").write_text(
        "# @package reward\nheaders:\n  X-Key: Bearer $JUDGE_KEY\n  X-Other: ${oc.env:OTHER}\n"
    )
    monkeypatch.setenv("JUDGE_KEY", HEADER)
    monkeypatch.setenv("OTHER", IN_YAML)
    yield from stand_in(tmp_path, monkeypatch)


def scores(handler, body) -> None:
    """Scores, with what the request held in the name of a term."""
    seen = f"{handler.headers['X-Key']} {handler.headers['Authorization']} {handler.headers['X-Other']} {handler.path}"
    numbers = [float(len(text)) for text in body["completions"]]
    handler.say(200, json.dumps({"scores": numbers, "terms": {seen: numbers}}))


def test_no_file_and_no_line_of_a_run_has_one(here, capsys, base):
    with serving(scores) as server:
        url = server.url.replace("http://", f"http://me:{IN_URL}@") + "?key=" + IN_URL
        said = answer(capsys, COMMAND.format(base=base, url=url))
        assert said.status in (0, None), said.err
        (sent, _) = server.seen[-1]
        assert sent["X-Key"] == f"Bearer {HEADER}" and sent["X-Other"] == IN_YAML
    files = [file for file in (here / "runs").rglob("*") if file.is_file()]
    texts = {str(file): file.read_bytes().decode("utf-8", "replace") for file in files}
    assert any("***" in text for text in texts.values())
    for secret in SECRETS:
        assert secret not in said.out + said.err
        assert not [name for name, text in texts.items() if secret in text]


def test_a_server_that_echoes_one_and_an_override_that_is_wrong_show_none(here, capsys, base):
    def refusing(handler, body) -> None:
        handler.say(401, f"no such key: {handler.headers['X-Key']}".encode())

    with serving(refusing) as server:
        said = refused(capsys, COMMAND.format(base=base, url=server.url), ["status 401", "no such key: ***"])
    assert HEADER not in said.err
    said = refused(capsys, f"stages=dpo dpo.hub_token={OF_TRL}", ["dpo.hub_token=***"])
    assert OF_TRL not in said.err
