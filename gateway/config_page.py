"""docs/config.md, generated: python -m gateway.config_page > docs/config.md"""

from __future__ import annotations

from gateway.config import CONFIG_FLAG, Option, options

PAGE = "python -m gateway.config_page > docs/config.md"

HEAD = """\
# Options of `headrace serve`

Each option is a flag, a variable and a key of the TOML file given by `--config` (the flag's name with `_` for `-`).
The flag wins over the variable, the variable over the file, the file over the default. A key the file should not have
is an error. Sizes are written `2GiB`, `512MiB` or in bytes.

| flag | variable | default | meaning |
|---|---|---|---|
"""

TAIL = f"""
One variable has no flag: `HEADRACE_CACHE`, the folder in which the default model is kept (otherwise the user's cache
folder of the platform). Models by hub name are kept where `HF_HOME` says.

This page is made by `{PAGE}`.
"""


def render() -> str:
    return HEAD + "".join(_row(option) for option in [CONFIG_FLAG, *options()]) + TAIL


def _row(option: Option) -> str:
    flag = option.flags.replace("/", "`, `")
    choices = f" One of {', '.join(f'`{choice}`' for choice in option.choices)}." if option.choices else ""
    default = f"`{option.shown_default}`" if option.shown_default else ""
    meaning = option.description.replace("*", r"\*")
    return f"| `{flag}` | `{option.variable}` | {default} | {meaning}{choices} |\n"


if __name__ == "__main__":
    print(render(), end="")
