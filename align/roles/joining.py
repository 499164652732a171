"""Another role's adapter on the actor's backbone: where it can stand there, and why not elsewhere."""

from __future__ import annotations

from pathlib import Path

from peft import PeftConfig, PeftModel

from align.peft.add import add_adapter, kept_trainable
from align.peft.quantized import wanted
from align.peft.routes import changes_the_base
from align.peft.stateful import hooks_of
from align.roles.adapter import for_task, settings_difference, take_weights
from align.roles.folder import CAUSAL, Folder
from align.roles.start import Start


def why_apart(actor: Start, folder: Folder, peft: PeftConfig | None, adapter: str = "auto") -> str:
    """Why a role that starts from `folder` with method `peft` cannot sit on the actor's base ('' if it can)."""
    mine = actor.model.peft_config["default"] if isinstance(actor.model, PeftModel) else None
    same = actor.quantized_from and folder.base is None and wanted(peft) == wanted(mine)
    return why_settings_apart(mine, actor.quantized_from if same else actor.base, folder, peft, adapter)


def why_settings_apart(
    mine: PeftConfig | None, base: str, folder: Folder, peft: PeftConfig | None, adapter: str = "auto"
) -> str:
    """`why_apart` by the actor's method and base alone, which are known before it loads."""
    if mine is None:
        return "the actor trains all weights of its own"
    if peft is None:
        return "it trains all its weights"
    if peft.peft_type != mine.peft_type:
        return f"PEFT takes one method a model, and the actor's is {mine.peft_type.value}"
    if changes_the_base(peft):
        return f"init_lora_weights={peft.init_lora_weights} takes a part out of the base for each adapter"
    if mine.is_prompt_learning:
        return f"{mine.peft_type.value} has one prompt a model"
    if hooks_of(mine).one_trained:
        return f"PEFT trains one {mine.peft_type.value} adapter a model"
    if folder.base and adapter == "new":
        return "its earlier adapter is merged into a base of its own"
    if place(folder.base or folder.path) != place(base):
        return f"it stands on {folder.base or folder.path}, the actor on {base}"
    return ""


def join(actor: Start, name: str, folder: Folder, peft: PeftConfig, trained: bool) -> tuple[str, str]:
    """Adds adapter `name` to the actor's model, from `folder`: in words what was done, or why it was not.

    An adapter of the same settings is copied; on the plain base a new one is made. Nothing stays behind where
    the settings differ.
    """
    model = actor.model
    add_adapter(model, name, for_task(peft, CAUSAL, actor.base), trained)
    if folder.base is None:
        return f"a new adapter on {actor.base}", ""
    if difference := settings_difference(model.peft_config[name], PeftConfig.from_pretrained(folder.path)):
        with kept_trainable(model):
            model.delete_adapter(name)
        return "", f"its adapter differs: {difference}"
    take_weights(model, folder.path, name)
    return f"the adapter of {folder.path}", ""


def place(path: str) -> str:
    """A folder's real place; a hub name as it is."""
    return str(Path(path).resolve()) if Path(path).exists() else path
