"""align against TRL on the same work, in turn on the same cores: ratios of CPU seconds and of peak memory.

    python benchmarks/against_trl.py --size s --repeats 3

TRL 1.12, the last with PPO, gets an environment of its own under --cache, made at the first call with this
environment's torch version; RLOO is the TRL that align itself uses. Figures, hardware and versions go to
benchmarks/results/DATE-SIZE.json and .md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import venv
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
PPO_PINS = ["trl==1.12.0", "transformers==5.19.0", "peft==0.21.2", "accelerate==1.15.0", "datasets==5.2.0"]
OURS = {"full": "full", "uneven": "uneven", "lora": "lora", "lora_head": "lora"}
"""Our work, and TRL's that it is held against."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["xs", "s", "m"], default="s")
    parser.add_argument("--work", nargs="+", choices=list(OURS), default=list(OURS))
    parser.add_argument("--linear", nargs="+", choices=["torch", "onednn"], default=["torch", "onednn"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", default="2")
    parser.add_argument("--cache", default=str(Path.home() / ".cache" / "align-benchmark"))
    parser.add_argument("--no-rloo", action="store_true")
    parser.add_argument("--out", default=str(HERE / "results"))
    args = parser.parse_args()
    peer = environment(Path(args.cache) / "trl-1.12")
    common = ["--size", args.size, "--steps", str(args.steps), "--fixtures", str(Path(args.cache) / "fixtures")]
    found: dict[str, list[dict]] = {}

    def run(name: str, python: str, script: str, *options: str) -> None:
        found.setdefault(name, []).append(measure(python, script, [*common, *options], args.threads))
        print(name, found[name][-1]["total"], "CPU s", found[name][-1]["peak_mib_above_imports"], "MiB", flush=True)

    for _ in range(args.repeats):  # in turn, so that a slow spell of the machine meets both
        for work in dict.fromkeys(OURS[work] for work in args.work):
            run(f"trl ppo {work}", peer, "trl_step.py", "--algorithm", "ppo", "--work", work)
            for ours in (name for name in args.work if OURS[name] == work):
                for linear in args.linear:
                    run(f"align {ours} {linear}", sys.executable, "ppo_step.py", "--work", ours, "--linear", linear)
        if not args.no_rloo:
            run("trl rloo full", sys.executable, "trl_step.py", "--algorithm", "rloo", "--work", "full")
    write(args, found)


def environment(folder: Path) -> str:
    """The interpreter of an environment with TRL 1.12, made if missing; torch as it is here."""
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        print(f"making {folder}", flush=True)
        venv.create(folder, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        index = os.environ.get("ALIGN_TORCH_INDEX")
        subprocess.run(
            [*pip, *(["--extra-index-url", index] if index else []), f"torch=={version('torch')}", *PPO_PINS],
            check=True,
        )  # fmt: skip
        (folder / "ready").write_text("")
    return str(python)


def measure(python: str, script: str, options: list[str], threads: str) -> dict:
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [python, str(HERE / script), *options, "--json", file.name]
        environ = {**os.environ, "OMP_NUM_THREADS": threads}
        done = subprocess.run(command, capture_output=True, text=True, env=environ)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        return json.loads(Path(file.name).read_text())


def write(args: argparse.Namespace, found: dict[str, list[dict]]) -> None:
    """The figures as JSON, and a table of ratios, each repeat against its own TRL run."""
    machine = {
        "processor": processor(), "cores": os.cpu_count(), "threads": args.threads, "load": os.getloadavg()[0],
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "trl")},
        "date": datetime.date.today().isoformat(), "size": args.size, "steps": args.steps,
    }  # fmt: skip
    lines = [
        f"# align against TRL, size {args.size}, {machine['date']}",
        "",
        f"{machine['processor']}, {machine['cores']} cores, {args.threads} threads; "
        + ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
        + f"; {args.repeats} repeats, median step of {args.steps} in each. Ratios to TRL 1.12 in the same repeat.",
        "",
        "| run | CPU s a step | ratio (all repeats) | peak MiB above imports | ratio |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, runs in found.items():
        work = OURS.get(name.split()[1], "full") if name.startswith("align") else name.split()[2]
        peer = found[f"trl ppo {work}"]
        seconds = [run["total"] / other["total"] for run, other in zip(runs, peer)]
        memory = [run["peak_mib_above_imports"] / other["peak_mib_above_imports"] for run, other in zip(runs, peer)]
        lines.append(
            f"| {name} | {statistics.median(run['total'] for run in runs):.1f} "
            f"| {statistics.median(seconds):.2f} ({', '.join(f'{x:.2f}' for x in seconds)}) "
            f"| {statistics.median(run['peak_mib_above_imports'] for run in runs):.0f} "
            f"| {statistics.median(memory):.2f} |"
        )
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    stem = out / f"{machine['date']}-{args.size}"
    stem.with_suffix(".json").write_text(json.dumps({"machine": machine, "runs": found}, indent=1) + "\n")
    stem.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def processor() -> str:
    """Name, family and model: two processors of one name may differ in their matrix products."""
    wanted = ("model name", "cpu family", "model")
    facts: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in wanted:
            facts.setdefault(name.strip(), value.strip())
    return f"{facts.get('model name')} (family {facts.get('cpu family')}, model {facts.get('model')})"


if __name__ == "__main__":
    main()
