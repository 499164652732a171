"""N adapters by SFT in one pass a step against N runs of SFT, one after the other: CPU seconds and peak memory.

    OMP_NUM_THREADS=1 python benchmarks/parallel_adapters.py          # writes benchmarks/results/DATE-parallel-adapters
    OMP_NUM_THREADS=1 python benchmarks/parallel_adapters.py --rows 1 8 --adapters 4

The random Llama of `memory.py` (34M parameters, float32), LoRA of rank 16, seeds 0 to N-1, demonstrations of 32-128
tokens. Each run is a process of its own. Seconds are those of training and of all of a run after imports, loading and
saving with it. `in one pass, PEFT's LoRA` has layers as the separate runs have them, so that the pass alone tells.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from meter import Meter, prepare

from align.stages.sft.spec import SFTOptions

SIDES = {"alone": "one after the other", "plain": "in one pass, PEFT's LoRA", "together": "in one pass"}


RATE = 2e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=4)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8], help="rows of an adapter's optimizer step")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--fixtures", default="build/benchmark")
    parser.add_argument("--size", choices=["34m", "1m"], default="34m")
    parser.add_argument("--point", help="one run, as JSON; for the processes that this script starts")
    parser.add_argument("--out", default=str(Path(__file__).resolve().parent / "results"))
    args = parser.parse_args()
    prepare()
    if args.point:
        measure(Path(args.fixtures), json.loads(args.point))
        return
    from memory import made

    made(args.fixtures, args.size)
    found = []
    for rows in args.rows:
        sides = {}
        for side in SIDES:
            seeds = range(args.adapters) if side == "alone" else [0]
            count = 1 if side == "alone" else args.adapters
            points = [
                {"side": side, "rows": rows, "seed": s, "adapters": count, "steps": args.steps, "size": args.size}
                for s in seeds
            ]
            sides[side] = added([run(args.fixtures, point) for point in points])
            print(rows, SIDES[side], sides[side], flush=True)
        found.append({"rows": rows, "adapters": args.adapters, "steps": args.steps, "sides": sides})
    write(Path(args.out), found)


def run(fixtures: str, point: dict) -> dict:
    command = [sys.executable, __file__, "--fixtures", fixtures, "--point", json.dumps(point)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{point}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def added(runs: list[dict]) -> dict[str, float]:
    """Seconds of all runs; the memory of one of them at a time, and of all at once."""
    peaks = [run["peak_mib_above_imports"] for run in runs]
    return {
        "train": round(sum(run["cpu_seconds"]["train"] for run in runs), 1),
        "total": round(sum(run["total"] for run in runs), 1),
        "mib": max(peaks), "mib_at_once": sum(peaks), "loss": runs[0]["loss"], "threads": runs[0]["threads"],
    }  # fmt: skip


def measure(fixtures: Path, point: dict) -> None:
    """One run of the stage; the last line printed is its figures."""
    import io

    import torch
    from memory import lora
    from rich.console import Console

    import align.stages.sft.stage
    from align.data.files import FileData
    from align.report.report import Report

    if point["side"] == "plain":
        align.stages.sft.side_by_side.use_fast_loras = lambda model: 0
    count = point["adapters"]
    options = SFTOptions(
        batch_size=point["rows"], learning_rate=RATE, args={"max_steps": point["steps"]}, parallel_adapters=count
    )
    data = FileData("prompt_completion", str(demonstrations(fixtures)))
    stage = align.stages.sft.stage.SFT(options, data, lora(), point["seed"], torch.device("cpu"), torch.float32)
    meter = Meter()
    for name in ("train", "train_together"):
        meter.wrap(align.stages.sft.stage, name, "train")
    with tempfile.TemporaryDirectory() as folder:
        report = Report(console=Console(file=io.StringIO()))
        with report.stage("sft", Path(folder)) as stage_report:
            meter.start()
            stage.run({"path": str(fixtures / point["size"] / "policy")}, Path(folder), stage_report)
            meter.end_step()
        rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    losses = [row.get("loss", row.get("adapter_0/loss")) for row in rows]
    last = [loss for loss in losses if loss is not None][-1]
    meter.report(None, loss=round(last, 4), threads=torch.get_num_threads(), **point)


def demonstrations(fixtures: Path) -> Path:
    """Prompts of the fixtures, each with the next one for its answer, as a file that the stage reads."""
    from transformers import AutoTokenizer

    file = fixtures / "demonstrations.jsonl"
    if not file.exists():
        tokenizer = AutoTokenizer.from_pretrained(fixtures)
        texts = tokenizer.batch_decode(json.loads((fixtures / "prompts.json").read_text()))
        pairs = zip(texts, texts[1:] + texts[:1])
        file.write_text("".join(json.dumps({"prompt": one, "completion": other}) + "\n" for one, other in pairs))
    return file


def write(out: Path, found: list[dict]) -> None:
    """JSON, and a table with ratios to the separate runs."""
    from against_trl import processor

    lines = [
        f"# {found[0]['adapters']} adapters side by side, {datetime.date.today().isoformat()}",
        "",
        f"{processor()}, {found[0]['sides']['alone']['threads']} threads, {found[0]['steps']} optimizer steps each. "
        "In brackets: to the separate runs. MiB above imports.",
        "",
        "| rows of an adapter | | CPU s, training | CPU s, all | MiB | MiB, all runs at once |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for point in found:
        alone = point["sides"]["alone"]
        for side, figures in point["sides"].items():
            cells = [
                f"{figures[name]} (x {figures[name] / alone[name]:.2f})"
                for name in ("train", "total", "mib", "mib_at_once")
            ]
            lines.append(f"| {point['rows']} | {SIDES[side]} | {' | '.join(cells)} |")
    out.mkdir(parents=True, exist_ok=True)
    stem = out / f"{datetime.date.today().isoformat()}-parallel-adapters"
    stem.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    stem.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
