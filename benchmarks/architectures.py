"""Text architectures through SFT, reward model and PPO: which train, and which vLLM writes rollouts for.

    python benchmarks/architectures.py --out DIR       # about half an hour on one core; writes docs/architectures.md
    python benchmarks/architectures.py --out DIR --only gpt2 opt --table DIR/architectures.md

Each is a random model of two layers with a tokenizer of 768 tokens, in a new process: three steps a stage, LoRA
everywhere and all weights everywhere, rollouts by transformers and by `rollout=auto`, vLLM where it serves. What is in
DIR/architectures.json already is not run again; `--only` runs these anew.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
import traceback
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

from pipeline import SHORT, arguments, enter, markdown, measure, run

from align.errors import AlignError

ROOT = Path(__file__).resolve().parent.parent
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
LATENT = {
    "kv_lora_rank": 32, "q_lora_rank": 32, "qk_rope_head_dim": 32, "qk_nope_head_dim": 32, "v_head_dim": 32,
    "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 64,
    "first_k_dense_replace": 1,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "mixtral": EXPERTS,
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
    "gemma": {},
    "gemma2": {"query_pre_attn_scalar": 32},
    "gemma3_text": {"query_pre_attn_scalar": 32},
    "phi": {},
    "phi3": {},
    "gpt2": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gpt_neox": {},
    "gptj": {"rotary_dim": 16},
    "gpt_bigcode": {},
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},
    "bloom": {},
    "falcon": {},
    "mpt": {},
    "olmo": {},
    "olmo2": {},
    "granite": {},
    "cohere": {},
    "cohere2": {},
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {},
    "glm4": {},
    "gpt_oss": EXPERTS,
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
}
"""Settings of a small model beside those of `config_of`, by `model_type`."""


METHODS = {"lora": "LoRA", "none": "all weights"}
ENGINES = ("hf", "auto")
POSITIONS = 256
SMALL = [
    "sft.data.held_out=8", "rm.data.held_out=8", "rm.data.pairs=64", "sft.data.demonstrations=64", "ppo.epochs=1",
    "ppo.minibatches=1", "ppo.eval_every=0", "rollout.max_new_tokens=12", "evaluate.judge=null",
]  # fmt: skip
NEAR = 1e-5
"""Nats of KL below which a policy counts as one that has not moved."""
SECONDS = 900
"""At most for one architecture."""
PAGE = ROOT / "docs" / "architectures.md"
HEAD = """# Architectures

`python benchmarks/architectures.py --out DIR` makes this table: a random model of two layers of each `model_type`,
through SFT, reward model and PPO, three steps each, once with LoRA on every linear layer and once with all weights,
with rollouts by transformers and by `rollout=auto`; float32 on CPU, {versions}.

*KL* is the largest of these runs, in nats; *ratio* is that of the new policy to the old, with its deviation over the
tokens of the first update; *vLLM* is the largest gap, in nats, of its log-probabilities to the trainer's, or the number
of the reason why transformers wrote.

Where transformers has no class with a score (Granite, Cohere), align makes one of transformers' parts; the `README.md`
of a reward model says how to load it.
"""


def config_of(name: str, vocabulary: int, pad: int, eos: int) -> Any:
    """The config of a model of two layers, two heads of 32 and 256 positions."""
    from transformers import CONFIG_MAPPING

    usual = {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32,
        "intermediate_size": 128, "max_position_embeddings": POSITIONS, "vocab_size": vocabulary,
        "initializer_range": 0.1, "bos_token_id": None, "eos_token_id": eos, "pad_token_id": pad,
    }  # fmt: skip
    cls = CONFIG_MAPPING[name]
    if isinstance(getattr(cls, "head_dim", None), property):
        del usual["head_dim"]
    return cls(**usual, **FAMILIES[name])


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--only", nargs="*", default=[], choices=list(FAMILIES), help="these alone, and anew")
    parser.add_argument("--table", type=Path, help="the page to write; docs/architectures.md unless given")
    parser.add_argument("--one", choices=list(FAMILIES), help="for the processes that this script starts")
    args = parser.parse_args()
    table = (args.table or (args.out / "architectures.md" if args.short else PAGE)).resolve()
    enter(args)
    base = run("base", ["stages=[pretrain]", "evaluate.judge=null", *SHORT]) / "pretrain"
    if args.one:
        print(json.dumps(through(args.one, base)))
        return
    file = Path("architectures.json")
    names = args.only or (["llama"] if args.short else list(FAMILIES))
    if args.only and file.exists():
        file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k not in names}))
    found = measure(file, names, apart)
    table.write_text(page({name: found[name] for name in FAMILIES if name in found}))


def apart(name: str) -> dict[str, Any]:
    """Run `through` in a new process."""
    command = [sys.executable, __file__, "--out", ".", "--one", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return {"crash": f"not done after {SECONDS} seconds"}
    Path(f"{name}.log").write_text(done.stderr)
    if done.returncode:
        return {"crash": (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def through(name: str, base: Path) -> dict[str, Any]:
    """Figures of PPO by `METHOD, ENGINE`, each after SFT and reward model by that method."""
    model, found = made(name, base), {}
    for method in METHODS:
        peft = [f"peft@{role}.peft={method}" for role in ("sft", "rm", "actor", "critic")]
        words = ["experiment=tiny", f"name={name}_{method}", f"model={model}", *SHORT, *SMALL, *peft]
        before = attempt([*words, "stages=[sft,rm]"])
        if before["error"]:
            found[method] = {"error": before["error"]}
            continue
        home = Path(before["run"])
        words += [f"actor.path={home / 'sft'}", f"critic.path={home / 'rm'}", f"reward.path={home / 'rm'}"]
        for engine in ENGINES:
            found[f"{method}, {engine}"] = ppo([*words, "stages=[ppo]", f"rollout={engine}"])
    return found


def ppo(words: list[str]) -> dict[str, Any]:
    done = attempt(words)
    if done["error"]:
        return done
    folder = Path(done["run"]) / "ppo"
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    step, last = steps[0], steps[-1]
    gaps = [one["val/engine_logp_gap"] for one in steps if "val/engine_logp_gap" in one]
    why = re.search(r"rollouts by transformers: (.*?)(?: \(rollout\.batch_size|$)", done["said"], re.MULTILINE)
    return {
        "engine": json.loads((folder / "card.json").read_text())["rollout_engine"], "why": why[1] if why else "",
        "kl": step["objective/kl"], "ratio": step["val/ratio"], "ratio_var": step["val/ratio_var"],
        "gap": max(gaps), "moved": last["objective/kl"],
    }  # fmt: skip


def attempt(words: list[str]) -> dict[str, str]:
    """A run's folder and lines, or the first line of its error."""
    import align

    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            summary = align.run(words)
    except Exception as error:  # whatever an architecture raises is a finding
        traceback.print_exc()
        line = next(iter(str(error).splitlines()), "")
        return {"error": line if isinstance(error, AlignError) else f"{type(error).__name__}: {line}"}
    return {"run": summary["run"], "said": said.getvalue(), "error": ""}


def made(name: str, base: Path) -> Path:
    """The folder of a random model with the tokenizer of `base`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path("models").resolve() / name
    if not (folder / "config.json").exists():
        tokenizer = AutoTokenizer.from_pretrained(base)
        torch.manual_seed(0)
        rows = len(tokenizer) + 64  # classes of tokenizers add tokens of their own
        config = config_of(name, rows, tokenizer.pad_token_id, tokenizer.eos_token_id)
        tokenizer.save_pretrained(folder)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def page(found: dict[str, dict]) -> str:
    """docs/architectures.md; a reason is a line below the table, by its number."""
    why: dict[str, int] = {}
    head = ["`model_type`"]
    head += [*METHODS.values(), "KL at step 0", "ratio, first update", *(f"vLLM, {name}" for name in METHODS.values())]
    rows = [row(name, one, why) for name, one in found.items()]
    lines = "".join(f"{number}. {line}\n" for line, number in why.items())
    used = ", ".join(
        f"{name} {version(packages_distributions()[name][0])}" for name in ("transformers", "peft", "vllm")
    )
    return f"{HEAD.format(versions=used)}\n{markdown(head, rows)}\n{lines}"


def row(name: str, found: dict, why: dict[str, int]) -> list[str]:
    """A line of the table; `why` takes its reasons."""

    def note(reason: str) -> str:
        words = re.sub(r"\b\w+(ForCausalLM|LMHeadModel)\b", "the model", reason)
        return f"no ({why.setdefault(words, len(why) + 1)})"

    trains, served, ran = [], [], []
    for method in METHODS:
        runs = [
            found.get(f"{method}, {engine}") or found.get(method) or {"error": found["crash"]} for engine in ENGINES
        ]
        good = [one for one in runs if not one.get("error")]
        errors = [one["error"] for one in runs if one.get("error")]
        still = [f"KL {one['moved']:.0e} after the last step" for one in good if abs(one["moved"]) < NEAR]
        trains.append(note([*errors, *still][0]) if errors or still else "yes")
        auto = runs[-1]
        if auto.get("error") or auto["engine"] != "vllm":
            served.append(note(auto.get("error") or auto["why"]))
        else:
            served.append(f"{auto['gap']:.0e}")
        ran += good
    kl = max((abs(one["kl"]) for one in ran), default=None)
    ratio = max((one["ratio_var"] ** 0.5 for one in ran), default=None)
    return [name, *trains, "–" if kl is None else f"{kl:.0e}", "–" if ratio is None else f"1 ± {ratio:.0e}", *served]


if __name__ == "__main__":
    main()
