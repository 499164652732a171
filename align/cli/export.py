"""`align export RUN --to DIR --merge`: a policy and its adapter as one plain model, for transformers and vLLM."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import NoReturn

import torch
from peft import PeftConfig, PeftModel
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedModel

from align.cli.schema import stage_specs
from align.config.fields import nearest
from align.errors import AlignError
from align.peft.merging import merged_tensors
from align.peft.routes import why_unmergeable
from align.plan.inputs import stage_in_run
from align.plan.spec import POLICY
from align.roles.folder import CAUSAL, SCORE, Folder, inspect
from align.roles.loading import load_dequantized, look
from align.roles.tokenizer import copy_tokenizer
from align.stages.pipeline import open_to_others

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LONG = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
LOST = 0.1
"""Of the update rounded away, from which on the export warns."""
NOTHING = 1e-5
SHOWN = 5
REMEDY = (
    "\n  use the folder of a run, or of a stage that makes a policy (it has a config.json or an adapter_config.json)"
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise AlignError(f"export: {message}\n  use align export FOLDER --to DIR --merge [--dtype fp32|bf16|fp16]")


def export(words: list[str]) -> Path:
    """Export a policy by the words after `align export`; return its folder. Raises AlignError before it writes."""
    parser = _Parser(prog="align export", add_help=False)
    parser.add_argument("run", type=Path)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--merge", action="store_true")
    parser.add_argument("--dtype", type=lambda word: LONG.get(word, word), choices=DTYPES)
    given = parser.parse_args(words)
    run, out = given.run.expanduser(), given.to.expanduser()
    if not run.is_dir():
        near = nearest(run.name, [one.name for one in run.parent.glob("*") if one.is_dir()])
        raise AlignError(f"export {given.run}: there is no folder {run.name} in {run.parent}{near or REMEDY}")
    path = stage_in_run(run, POLICY, stage_specs()) or run
    if not any((path / name).exists() for name in ("config.json", "adapter_config.json")):
        raise AlignError(f"export {given.run}: it holds no policy{REMEDY}")
    folder = look(str(path), "export", (CAUSAL, SCORE))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise AlignError(f"export: {out} is there already\n  use --to with a new folder")
    if folder.base and not given.merge:
        raise AlignError(f"export: {folder.path} is an adapter on {folder.base} as it is\n  use --merge")
    if folder.base and (why := why_unmergeable(PeftConfig.from_pretrained(folder.path))):
        raise AlignError(
            f"export: the adapter of {folder.path} cannot be merged: {why}\n"
            f"  load it as it is: PeftModel.from_pretrained(base, {folder.path!r})"
        )
    lost = merge(folder, out, DTYPES.get(given.dtype))
    copy_tokenizer(folder.path, out)
    open_to_others(out)
    report(lost, folder, out)
    return out


def merge(folder: Folder, out: Path, dtype: torch.dtype | None) -> dict[str, float]:
    """Save the plain model; return by parameter the share of the update that its dtype rounds away.

    Merged in float32, tensor by tensor, and saved in `dtype`, by default the base's own.
    """
    model = load_dequantized(folder.base or folder.path, folder.kind, torch.float32)
    dtype = dtype or _own_dtype(folder)
    before = {name: p.data for name, p in model.named_parameters(remove_duplicate=False)}
    buffers = {name: tensor for name, tensor in model.state_dict().items() if name not in before}
    state, lost = {**buffers, **{name: tensor.to(dtype) for name, tensor in before.items()}}, {}
    if folder.base:
        wrapped = PeftModel.from_pretrained(model, folder.path)
        for name, tensor in merged_tensors(wrapped):
            state[name] = tensor.to(dtype, copy=True)
            if (share := rounded_away(before[name], tensor, state[name])) is not None:
                lost[name] = share
        model = wrapped.unload()
    untie(model, state)
    model.to(dtype).save_pretrained(out, state_dict=state)
    return lost


def untie(model: PreTrainedModel, state: dict[str, Tensor]) -> None:
    """Let a model whose head and embedding are unlike after merging have both, in place."""
    names = {id(module): name for name, module in model.named_modules()}
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    if not model.config.tie_word_embeddings or None in ends:
        return
    first, last = (state[f"{names[id(end)]}.weight"] for end in ends)
    if not torch.equal(first, last):
        model.config.tie_word_embeddings = False


def rounded_away(before: Tensor, after: Tensor, saved: Tensor) -> float | None:
    """|realised - wanted| / |wanted| of an update, in Frobenius norms; None where there is none.

    Realised is what stands in the file less the base in the file's dtype.
    """
    wanted = (after - before).double()
    if not wanted.any():
        return None
    realised = saved.double() - before.to(saved.dtype).double()
    return float((realised - wanted).norm() / wanted.norm())


def report(lost: dict[str, float], folder: Folder, out: Path) -> None:
    """Print the model's folder and what was rounded away; write all layers into export.json."""
    (out / "export.json").write_text(
        json.dumps({"from": folder.path, "rounded_away": lost}, indent=2) + "\n", encoding="utf-8"
    )
    console = Console()
    done = "merged into" if folder.base else "copied to"
    dtype = str(inspect(out, "export", folder.kind).config()["dtype"])
    console.print(f"{folder.path} {done} {out}, in {dtype}", soft_wrap=True)
    if max(lost.values(), default=0.0) < NOTHING:
        return
    table = Table(
        "layer", "share of its update rounded away", title=f"the {SHOWN} worst of {len(lost)} (export.json has all)"
    )
    for name, share in sorted(lost.items(), key=lambda item: -item[1])[:SHOWN]:
        table.add_row(name, f"{share:.2%}")
    console.print(table)
    if max(lost.values()) > LOST:
        console.print("much of the update is finer than this dtype: use --dtype fp32, or serve the adapter as it is")


def _own_dtype(folder: Folder) -> torch.dtype:
    """The dtype that the base's config.json names; float32 where it names none that a plain model is saved in."""
    named = folder.config().get("dtype") or folder.config().get("torch_dtype")
    return {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}.get(named, torch.float32)
