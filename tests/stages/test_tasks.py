"""Rows of a mixture are counted by task in every stage that trains on them."""

import json

from command_line import stand_in, write_rows

import align

STAGES = ("rm", "best_of", "dpo", "kto")


def test_every_stage_tells_how_many_rows_of_each_task_it_has(tmp_path, monkeypatch, base, capsys):
    pairs = [{"prompt": f"say {i}", "chosen": f" {i}", "rejected": f" not {i}"} for i in range(12)]
    write_rows(tmp_path / "a.jsonl", pairs)
    write_rows(tmp_path / "b.jsonl", pairs[:4])
    words = [f"model={base}", f"stages=[{','.join(STAGES)}]"]
    for stage in STAGES:
        words += [f"data@{stage}.data=mixture", f"+{stage}.args.max_steps=1", f"{stage}.batch_size=4"]
        for task in ("a", "b"):
            part = f"{stage}.data.parts.{task}"
            words += [f"+data@{part}=preferences", f"{part}.path={task}.jsonl", f"{part}.eval_share=0"]
    for here in stand_in(tmp_path, monkeypatch):
        align.run(words)
        run = here / "runs" / "run" / "latest"
        told = {stage: json.loads((run / stage / "card.json").read_text())["tasks"] for stage in STAGES}
    assert told == {**{stage: {"a": 12, "b": 4} for stage in STAGES}, "kto": {"a": 24, "b": 8}}
    assert capsys.readouterr().out.count("task a: 12 of 16 rows") == 3
