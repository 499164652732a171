"""Choices typed on the command line against those of an experiment: a plug has its own settings and what was typed.

An experiment that chooses `reward: fn` and sets `reward.fn` sets that for this choice: `reward=kind_words` drops it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from align.cli.plugins import defaults_of, plug_file, plug_files, read_yaml

GLOBAL = ("experiment", "debug", "sweep", "local")
"""Groups whose files set keys of all sections."""
SHARING = ("actor", "critic", "reference", "rollout")
"""Groups whose choices have the same settings, so that an experiment's settings stand for each of them."""
Compose = Callable[[list[str]], DictConfig]


@dataclass
class Preset:
    """The yaml of an experiment: its choices, by section, and the settings below them."""

    choices: dict[str, str | None] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def touches(self, section: str) -> bool:
        """It sets a key of the section, or makes a choice below it."""
        return self.below(section) is not None or any(one.startswith(f"{section}.") for one in self.choices)

    def below(self, section: str) -> Any:
        found: Any = self.settings
        for part in section.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        return found


def drop_settings_of_others(
    cfg: DictConfig, typed: list[str], compose: Compose, usual: Callable[[], Mapping[str, str | None]]
) -> None:
    """Take out of each plug that was typed what an experiment sets for another choice, in place.

    `compose(words)` composes alone what the words choose; `usual()` has the choices before an experiment, by group.
    """
    choices = cfg.hydra.runtime.choices
    keys = [word.lstrip("+").partition("=")[0] for word in typed]
    keys = [one for one in keys if choices.get(one) and one.partition("@")[0] not in (*GLOBAL, *SHARING, "stage")]
    chosen = [(group, choices[group]) for group in GLOBAL if isinstance(choices.get(group), str)] if keys else []
    presets = [preset for group, name in chosen for preset in _presets(group, name)]
    for key in keys:
        group, _, section = key.partition("@")
        section = section or group
        touching = [one for one in presets if one.touches(section)]
        if any(one.choices.get(section, usual().get(key)) != choices[key] for one in touching):
            alone = compose([f"+{group}@alone={choices[key]}"]).alone
            _replace(cfg, section, alone, [word for word in typed if word.partition("=")[0] != key])


def _replace(cfg: DictConfig, section: str, alone: DictConfig, typed: list[str]) -> None:
    """Put a plug alone in the place of a section, with what was typed below it."""
    new = OmegaConf.create(OmegaConf.to_container(alone, resolve=False), flags={"struct": False})
    for word in typed:
        key = word.lstrip("+~").partition("=")[0]
        key = key.partition("@")[2] or key
        if key.startswith(f"{section}.") and not word.startswith("~"):
            value = OmegaConf.select(cfg, key)
            value = OmegaConf.to_container(value, resolve=False) if OmegaConf.is_config(value) else value
            OmegaConf.update(new, key.removeprefix(f"{section}."), value, force_add=True)
    with open_dict(cfg):
        OmegaConf.update(cfg, section, new, merge=False)


def _presets(group: str, name: str) -> Iterator[Preset]:
    """The preset of a yaml, after those that its defaults take in."""
    if not plug_files(group, name):
        return  # an optional one, such as local/default.yaml
    found = read_yaml(plug_file(group, name))
    preset = Preset(settings={key: value for key, value in found.items() if key != "defaults"})
    for home, choice, section in defaults_of(group, found):
        if home in GLOBAL:
            yield from _presets(home, choice)
        else:
            preset.choices[section or home] = choice
    yield preset
