"""run.toml + method.toml -> TrainConfig; a config and a cohort's grid -> Recipe.

A config says how large and how long; a method says what is trained on what. Both are TOML with the
same keys; the method is laid over the config. A method that is another one but for a few values
names it, `based_on = "le-uda-plus"`, and holds those values alone.
"""

from __future__ import annotations

from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from leuda_deploy.errors import ConfigError, describe
from leuda_deploy.machine.outside import parse_toml, read_toml
from leuda_deploy.scans.recipe import Recipe
from leuda_train.config.schema import TrainConfig


def built_in(kind: Literal["configs", "methods"]) -> list[str]:
    """Names of the configs or methods in the package."""
    folder = resources.files("leuda_train") / kind
    return sorted(
        Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".toml")
    )


def load_config(config: str | dict[str, Any], method: str, **overrides: Any) -> TrainConfig:
    """Read a config and a method, lay the method over the config, and check what comes of it.

    Args:
        config: How large and how long: a built-in name (demo, mini, small, paper-cardiac,
            paper-abdominal) or the path of a TOML file; or what such a file would hold.
        method: What is trained on what: a built-in name (le-uda-plus, le-uda, ...) or a path.
        **overrides: Values laid over both, such as seed=1 or device="cpu". None overrides nothing.

    Raises:
        ConfigError: For the first thing that is wrong.
    """
    title = config if isinstance(config, str) else str(config.get("name", "given"))
    below = _read("configs", config) if isinstance(config, str) else config
    content = _merge(below, _read_method(method))
    content.setdefault("name", Path(title).stem)
    content.setdefault("method", Path(method).stem)
    content |= {key: value for key, value in overrides.items() if value is not None}
    return parse_config(content, f"config {title} with method {method}")


def parse_config(content: dict[str, Any], origin: str) -> TrainConfig:
    """Validate a resolved config. Raises ConfigError naming the first fault."""
    try:
        return TrainConfig.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {describe(error)}") from error


def make_recipe(config: TrainConfig, slice_axis: str, spacing_mm: object) -> Recipe:
    """The cohort's slice axis and spacing with the config's window and intensities.

    Raises ConfigError naming the first fault.
    """
    content = {"slice_axis": slice_axis, "spacing_mm": spacing_mm, **config.recipe.model_dump()}
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"recipe of config {config.name}: {describe(error)}") from error


def _read(kind: Literal["configs", "methods"], name: str) -> dict[str, Any]:
    path = Path(name)
    if path.suffix == ".toml":
        if not path.is_file():
            raise ConfigError(f"no such file: {path}")
        return read_toml(path)
    if name in built_in(kind):
        text = (resources.files("leuda_train") / kind / f"{name}.toml").read_bytes()
        return parse_toml(text, name)
    alike = get_close_matches(name, built_in(kind), n=1)
    meant = f": did you mean {alike[0]}?" if alike else "."
    names = ", ".join(built_in(kind))
    raise ConfigError(f"no {kind[:-1]} named {name!r}{meant} Built in: {names}; or a *.toml file")


def _read_method(name: str, before: tuple[str, ...] = ()) -> dict[str, Any]:
    """A method laid over the one that it is based on, and so on."""
    content = _read("methods", name)
    base = content.pop("based_on", None)
    if base is None:
        return content
    chain = (*before, name)
    if not isinstance(base, str):
        raise ConfigError(f"method {name}: based_on = {base!r} is not the name of a method")
    if base in chain:
        raise ConfigError(f"method {name}: based_on goes round: {' -> '.join((*chain, base))}")
    return _merge(_read_method(base, chain), content)


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged
