"""Comparison of two states of this repository: are all numbers of their runs the same to the last bit?

    python benchmarks/same_numbers.py                              # every case, the working tree against --base
    python benchmarks/same_numbers.py --cases start 'peft_*' --keep DIR   # DIR keeps the base's results for next time

Each state is installed from a copy of its files, align and every plugin, into an environment of its own: the packages
of this environment without the editable ones. Nothing of align is imported here: runs are commands, and their files are
read. Runs are one at a time, on one thread. Exit code 1: a run failed, or a figure differs that ALLOWED does not name.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "same_numbers.json"
GIT = ["git", "-C", str(ROOT)]
RENAMED: dict[str, str] = {}
"""Words, keys or values of a command that have another name in the present state: `{"old": "new"}`."""
ALLOWED: dict[str, str] = {}
"""Differences that are meant: a pattern of `CASE STAGE/FILE KEY`, and the reason."""

METHODS = """none lora lora_r1 rslora dora pissa adalora qlora ia3 oft boft loha lokr vera miss ln_tuning prompt
p_tuning prefix p_tuning_v2 trainable_tokens houlsby pfeiffer parallel""".split()
GROUPED = ["critic=none", "rollout.samples_per_prompt=4"]
ADVANTAGES = {"gae": [], "reinforce_pp": ["critic=none"], "rloo": GROUPED, "grpo": GROUPED, "dr_grpo": GROUPED}
POLICY_LOSSES = {
    "clip": [],
    "clip_higher": [],
    "dual_clip": [],
    "gspo": ["ppo.loss_aggregation=sequence_mean_token_mean"],
}
SHORT = ["experiment=tiny", "debug=default"]
FROM_START = ["model={start}/pretrain", "actor.path={start}/sft", "reward.path={start}/rm", "rollout=hf"]
"""The short cases of both states start from the base's case `start`."""


def cases() -> dict[str, list[str]]:
    """Words of each case's command by name; `{start}` and `{untied}` stand for folders of the base's results."""
    ppo = [*SHORT, "stages=[ppo]", *FROM_START]
    sampled = ["experiment=tiny_sampled", "debug=default", "pretrain.steps=120", "sft.args.max_steps=40"]
    return {
        "start": [*SHORT, "stages=[pretrain,sft,rm]"],
        "tiny_short": [*SHORT, "seed=1"],
        "dpo": [*SHORT, "stages=[dpo]", *FROM_START],
        "kto": [*SHORT, "stages=[kto]", *FROM_START],
        **{f"advantage_{name}": [*ppo, f"advantage={name}", *words] for name, words in ADVANTAGES.items()},
        **{f"policy_loss_{name}": [*ppo, f"policy_loss={name}", *words] for name, words in POLICY_LOSSES.items()},
        **{f"peft_{name}": [*method(name), "rollout=hf"] for name in METHODS},
        **{f"vllm_{name}": [*method(name), "rollout=vllm"] for name in ("adalora", "ia3", "prompt")},
        "tiny_sampled_short": sampled,  # longer than three steps: some of what is sampled has to end
        "tiny": ["experiment=tiny", "seed=0"],
        "tiny_sampled": ["experiment=tiny_sampled"],
    }


def method(name: str) -> list[str]:
    """Words that put a PEFT method into every seat, three steps a stage."""
    seats = ("sft", "rm", "actor", "critic")
    model, words = "{start}/pretrain", [f"peft@{seat}.peft={name}" for seat in seats]
    if name == "trainable_tokens":
        model = "{untied}"
        words += [f"{seat}.peft.token_indices=[{','.join(map(str, range(4, 64)))}]" for seat in seats]
    return [*SHORT, "stages=[sft,rm,ppo]", f"model={model}", "zero@actor.zero=none", *words]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="9cc2ec5", help="the commit to compare with")
    parser.add_argument("--cases", nargs="*", default=["*"], help="names, or patterns of names; all by default")
    parser.add_argument("--keep", type=Path, help="a folder of results: KEEP/COMMIT/CASE of the base is not run again")
    parser.add_argument("--base-only", action="store_true", help="fill KEEP with the base's results, compare nothing")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.relative_to(ROOT)}")
    args = parser.parse_args()
    chosen = {name: words for name, words in cases().items() if any(fnmatch(name, one) for one in args.cases)}
    if not chosen:
        parser.error(f"--cases={args.cases}: no case has this name. Use {', '.join(cases())}.")
    commit = subprocess.check_output([*GIT, "rev-parse", "--short=10", args.base], text=True).strip()
    with tempfile.TemporaryDirectory(prefix="same_numbers_") as temporary:
        keep = (args.keep or Path(temporary)).resolve()
        base = State(keep / commit, Path(temporary) / "base", commit)
        present = State(keep / "present", Path(temporary) / "present", None)
        rows = list(run(chosen, base, None if args.base_only else present))
    same = sum(row["verdict"] == "same" for row in rows)
    if rows:
        print(f"{same} of {len(rows)} cases have the same numbers as {commit} to the last bit")
    if args.write:
        RESULT.write_text(json.dumps({"base": commit, "cases": rows}, indent=2) + "\n")
    raise SystemExit(same != len(rows))


def run(chosen: dict[str, list[str]], base: State, present: State | None) -> Iterator[dict[str, Any]]:
    """Run the cases in both states; gives a row on each, and prints it with its first differences."""
    folders = {"start": base.folder / "start" / "result", "untied": base.folder / "untied"}
    if any("{" in word for words in chosen.values() for word in words):
        base.result("start", cases()["start"])
    print(f"{'case':<24}{'runs':<7}", *(f"{name:>8}" for name in (*COUNTS, "allowed")), " verdict", flush=True)
    for case, words in chosen.items():
        if "model={untied}" in words and not folders["untied"].exists():
            untie(folders["start"] / "pretrain", folders["untied"])
        words = [word.format(**folders) for word in words]
        first = base.result(case, words)
        if present:
            shutil.rmtree(present.folder / case, ignore_errors=True)
            row = compare(case, first, present.result(case, [renamed(word) for word in words]))
            counts = [f"{row.get(name, 0):>8}" for name in (*COUNTS, "allowed")]
            print(f"{case:<24}{'failed' if any(row['codes']) else 'ok':<7}", *counts, "", row["verdict"], flush=True)
            for name, before, now in row["differences"][:8]:
                print(f"    {name}: {str(before)[:200]} -> {str(now)[:200]}")
            yield row


class State:
    """One state of the repository: its environment, made when a run first needs it, and its results by case."""

    def __init__(self, folder: Path, place: Path, commit: str | None) -> None:
        self.folder, self.place, self.commit = folder, place, commit

    def result(self, case: str, words: list[str]) -> Path:
        """The case's folder, with `done.json` and `result`; runs the command unless the same one succeeded there."""
        folder = self.folder / case
        done = folder / "done.json"
        if done.exists() and read(done)["words"] == words and read(done)["code"] == 0:
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        command = ["nice", str(self.python()), "-m", "align", *words, "cpu_linear=torch", f"name={case}", "runs=runs"]
        begun = time.perf_counter()
        with (folder / "log.txt").open("w") as log:
            code = subprocess.run(command, cwd=folder, env=self.environment(), stdout=log, stderr=log).returncode
        seconds = round(time.perf_counter() - begun, 1)
        (folder / "result").symlink_to(Path("runs") / case / "latest")
        done.write_text(json.dumps({"words": words, "code": code, "seconds": seconds}) + "\n")
        print(f"{self.commit or 'present'} {case}: {seconds} s, exit code {code}", flush=True)
        return folder

    def environment(self) -> dict[str, str]:
        """Variables of a run: one thread, one order of sets, no cache that another run could have filled."""
        kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
        path = f"{self.place / 'env' / 'bin'}:{Path(sys.executable).parent}:{kept.get('PATH', '')}"
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        return {**kept, "PATH": path, "HF_DATASETS_CACHE": str(self.place / "cache"), "HF_HUB_OFFLINE": "1", **threads}

    def python(self) -> Path:
        """The interpreter of the state's own environment: its files, and no editable package."""
        python = self.place / "env" / "bin" / "python"
        if python.exists():
            return python
        tree = self.place / "tree"
        tree.mkdir(parents=True)
        if self.commit:
            files = subprocess.check_output([*GIT, "archive", self.commit])
        else:  # what git does not ignore, and no build folder
            names = subprocess.check_output([*GIT, "ls-files", "-coz", "--exclude-standard"]).split(b"\0")
            names = b"\0".join(name for name in names if (ROOT / os.fsdecode(name)).is_file())
            files = subprocess.check_output(["tar", "-c", "--null", "-T", "-"], cwd=ROOT, input=names)
        subprocess.run(["tar", "-x", "-C", str(tree)], input=files, check=True)
        venv.EnvBuilder(with_pip=False).create(self.place / "env")
        (site,) = (self.place / "env").glob("lib/python*/site-packages")
        packages = [tree, *(file.parent for file in sorted(tree.glob("plugins/*/pyproject.toml")))]
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
        subprocess.run([*pip, "--target", str(site), *map(str, packages)], check=True)
        link_packages(site)
        print(f"{self.commit or 'present'}", check_environment(python, site, self.environment()), flush=True)
        return python


def link_packages(site: Path) -> None:
    """Link to the packages of this environment: none that is editable, none that `site` has."""
    (own,) = (Path(folder) for folder in sys.path if folder.endswith("site-packages"))
    for entry in own.iterdir():
        origin = entry / "direct_url.json"
        from_folder = origin.exists() and "dir_info" in read(origin)
        if not (from_folder or entry.name.startswith(("__editable__", "__pycache__")) or (site / entry.name).exists()):
            (site / entry.name).symlink_to(entry)


CHECK = """
import importlib.metadata, importlib.util, json, sys
def place(name):
    spec = importlib.util.find_spec(name)
    return spec and (spec.origin or list(spec.submodule_search_locations)[0])
points = [p for d in importlib.metadata.distributions() for p in d.entry_points if p.group.startswith("align.")]
found = {name: place(name) for name in ("align", "align.conf")}
found |= {f"{p.group}:{p.name}": place(p.value.split(":")[0]) for p in points}
print(json.dumps([found, [str(f) for f in sys.meta_path if "__editable__" in getattr(f, "__module__", "")]]))
"""


def check_environment(python: Path, site: Path, environment: dict[str, str]) -> str:
    """The places of align, align.conf and the plugins in one line; asserts that all are the state's own."""
    found, finders = json.loads(subprocess.check_output([python, "-c", CHECK], cwd=python.parent, env=environment))
    assert not finders, f"editable packages are found by {finders}"
    assert any(name.startswith("align.conf:") for name in found), f"no plugin is found: {found}"
    found = {name: place for name, place in found.items() if place or name != "align.conf"}  # it may be elsewhere
    for name, place in found.items():
        assert place and Path(place).resolve().is_relative_to(site.resolve()), f"{name} is {place}, not in {site}"
    return f"in {site}: " + ", ".join(f"{name} {Path(place).relative_to(site)}" for name, place in found.items())


def untie(model: Path, folder: Path) -> None:
    """Save the model with a head that is a copy of its embedding: single tokens cannot train in a tied one."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tied = AutoModelForCausalLM.from_pretrained(model)
    state = {**tied.state_dict(), "lm_head.weight": tied.get_input_embeddings().weight.detach().clone()}
    tied.config.tie_word_embeddings = False
    type(tied).from_pretrained(None, config=tied.config, state_dict=state).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)


def renamed(word: str) -> str:
    """The word in the present state's names, where it, its key or its value stands in RENAMED."""
    key, equals, value = RENAMED.get(word, word).partition("=")
    return RENAMED.get(key, key) + equals + RENAMED.get(value, value)


COUNTS = ("metrics", "figures", "tensors", "texts")
"""Values of metrics.jsonl; of card.json and summary.json; tensors; lines of other files, which hold completions."""
TIMES = re.compile(r"(^|[/_.])(seconds|runtime|per_second)($|[/_.])")
NOT_COMPARED = {"versions", "inputs", "hashes", "run"}
"""Versions, paths, and hashes of files that hold paths (adapter_config.json); tensors have hashes of their own."""


def figures(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every number, truth value, null and single word of a JSON value by its dotted name, without times and paths."""
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            if key not in NOT_COMPARED and not TIMES.search(str(key)):
                yield from figures(part, f"{name}.{key}" if name else str(key))
    elif not isinstance(value, str) or not re.search(r"[\s/]", value):
        yield name, value


def tensors(file: Path) -> Iterator[tuple[str, str]]:
    """Each tensor's dtype, shape and SHA-256 by name."""
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    for name, about in json.loads(content[8:start]).items():
        if name != "__metadata__":
            begin, end = (start + offset for offset in about["data_offsets"])
            yield name, f"{about['dtype']} {about['shape']} {hashlib.sha256(content[begin:end]).hexdigest()}"


def found_in(folder: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Everything compared in a run's folder by file and name, the oldest file first, and counts of it by kind."""
    found: dict[str, Any] = {}
    counts = dict.fromkeys(COUNTS, 0)
    for file in sorted(folder.rglob("*"), key=lambda file: file.lstat().st_mtime_ns):
        if file.suffix == ".safetensors":
            kind, values = "tensors", dict(tensors(file))
        elif file.name in ("card.json", "summary.json"):
            kind, values = "figures", dict(figures(read(file)))
        elif file.name == "metrics.jsonl":
            kind, values = "metrics", dict(figures([json.loads(line) for line in file.read_text().splitlines()]))
        elif file.suffix == ".jsonl":  # completions and preferences; made_from has hashes of sources and paths
            lines = enumerate(file.read_text().splitlines())
            kind, values = "texts", {i: line for i, line in lines if not line.startswith('{"made_from"')}
        else:
            continue
        counts[kind] += len(values)
        found |= {f"{file.relative_to(folder)} {name}": value for name, value in values.items()}
    return found, counts


def compare(case: str, base: Path, present: Path) -> dict[str, Any]:
    """The verdict on a case, with every difference: name, the base's value, the present one."""
    both = [read(folder / "done.json") for folder in (base, present)]
    row = {"case": case, "codes": [done["code"] for done in both], "seconds": [done["seconds"] for done in both]}
    if any(row["codes"]):
        return {**row, "verdict": f"failed: {base}/log.txt, {present}/log.txt", "differences": []}
    (first, counts), (second, _) = (found_in((place / "result").resolve()) for place in (base, present))
    names = [name for name in {**first, **second} if repr(first.get(name, "-")) != repr(second.get(name, "-"))]
    meant = [name for name in names if any(fnmatch(f"{case} {name}", pattern) for pattern in ALLOWED)]
    differences = [(name, first.get(name, "-"), second.get(name, "-")) for name in names if name not in meant]
    verdict = f"{len(differences)} differ" if differences else "same" if counts["tensors"] else "nothing to compare"
    return {**row, **counts, "allowed": len(meant), "verdict": verdict, "differences": differences}


def read(file: Path) -> Any:
    return json.loads(file.read_text())


if __name__ == "__main__":
    main()
