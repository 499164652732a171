"""`align --help`: commands, examples, every choice of every group. Imports no plug."""

from __future__ import annotations

import ast
import textwrap
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path

from align.cli.errors import unknown_key
from align.cli.plugins import plugs
from align.cli.schema import all_settings, default_choices, stage_specs
from align.config.fields import describe, types_of
from align.config.values import Plug
from align.errors import AlignError

COMMANDS = """\
align [run] [FLAGS] [SETTINGS]    one run of stages=[…]: {stages}
align plugins [GROUP]             every choice below, where it comes from and how it is used
align plugins --explain METHOD    what a PEFT method trains, how vLLM serves it, who can share a base (model=FOLDER)
align COMMAND --help              help of a command
align --help KEY                  default, range and meaning of a setting, or of a section: align --help ppo.kl_coef
align export RUN --to DIR --merge a policy and its adapter as one plain model (--dtype fp32|bf16|fp16)
"""
OF_COMMANDS = {
    "plugins": """\
usage: align plugins [GROUP]
       align plugins --explain METHOD [KEY=VALUE …] [model=FOLDER]

Every choice of every group, where it comes from and how it is used; or what a PEFT method trains on a model, how vLLM
serves it and who can share a base.

examples
  align plugins reward
  align plugins --explain lora r=16 model=runs/tiny/latest/pretrain
""",
    "export": """\
usage: align export RUN --to DIR [--merge] [--dtype fp32|bf16|fp16]

A policy as one plain model, for transformers and vLLM.

  RUN                      the folder of a run, or of a stage that makes a policy
  --to DIR                 a new folder
  --merge                  with the adapter in the weights
  --dtype fp32|bf16|fp16   the dtype of the weights; by default that of the base

example
  align export runs/tiny/latest --to model --merge
""",
}
"""Help of align's own commands; those of plugins print theirs."""
EXAMPLES = """\
examples
  align experiment=tiny
  align stages=[sft] model=FOLDER data@sft.data=prompt_completion sft.data.path=demos.jsonl
  align stages=ppo actor.path=FOLDER ppo.data.path=prompts.jsonl reward=fn reward.fn=my_rewards.brevity
  align experiment=tiny peft@actor.peft=none ppo.kl_coef=0.02
  align -m experiment=tiny seed=1,2,3
"""
FLAGS = """\
flags
  --cfg job [--resolve] [-p actor]   the configuration that the settings make, or one section of it; runs nothing
  -m, --multirun                     a run for each combination: seed=1,2 'ppo.kl_coef=range(0,3)' 'experiment=glob(*)'
  --config-dir DIR                   yaml files of your own (those in ./conf are found without it)
  --info searchpath                  where yaml files are looked for; --hydra-help: all flags
"""


def print_help(added: dict[str, EntryPoint], keys: list[str]) -> None:
    """Print the help, `added` being the commands of plugins; with keys that of each, a setting or a section."""
    for key in keys:
        print_settings(key)
    if keys:
        return
    print(COMMANDS.replace("{stages}", ", ".join(stage_specs())), end="")
    for name, entry in added.items():
        print(f"{f'align {name}':33} {command_help(entry)}")
    print()
    print(EXAMPLES)
    print("choices (align --cfg job shows all other settings)")
    for keys, names in choices():
        print(textwrap.fill(f"{keys}= {' '.join(names)}", 120, initial_indent="  ", subsequent_indent=" " * 6))
    print()
    print(FLAGS, end="")


def command_help(entry: EntryPoint) -> str:
    """The first line of the docstring of a command's function, read from its file: nothing is imported but packages."""
    file = find_spec(entry.module).origin
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == entry.attr]
    return next(iter((ast.get_docstring(functions[0]) or "").splitlines()), "") if functions else ""


def choices() -> list[tuple[str, list[str]]]:
    """List every choice: the text before the `=`, and all names that may stand after it."""
    names: dict[str, list[str]] = {}
    for group, name, _, _ in plugs():
        names.setdefault(group, []).append(name)
    keys: dict[str, list[str]] = {}
    for key in default_choices(stage_specs()):
        group, _, package = key.partition("@")
        keys.setdefault(group, []).append(package)
    found = []
    for group in sorted(names, key=lambda group: (group != "experiment", group)):
        packages = keys.get(group, [])
        owners = [package.removesuffix(f".{group}") for package in packages if package.endswith(f".{group}")]
        key = f"{group}@{{{','.join(owners)}}}.{group}" if owners and "" not in packages else group
        found.append((key, sorted(set(names[group]))))
    return found


def is_choice(cls: type, field: str, home: str, key: str) -> bool:
    """Return True where `key` lies below a setting, at `home`, that is a choice of a group."""
    return key.startswith(f"{home}.") and Plug in types_of(cls)[field]


def print_settings(key: str) -> None:
    """Print default, allowed values, unit and help of a setting, or of all settings of a section.

    Raises AlignError for a key that no section has.
    """
    known = all_settings(stage_specs())
    found = {name: one for name, one in known.items() if name == key or name.startswith(f"{key}.")}
    if home := next((one for one, (cls, field) in known.items() if not found and is_choice(cls, field, one, key)), ""):
        print(f"{key}: a setting of the choice for {home}; align … --cfg job -p {home} shows those of a choice")
        return
    if not found:
        raise AlignError(unknown_key(key))
    for name, (cls, field) in found.items():
        facts, text = describe(cls, field)
        print(f"{name}  ({'; '.join(facts)})")
        print(textwrap.fill(" ".join(text.split()), 110, initial_indent="    ", subsequent_indent="    "))
