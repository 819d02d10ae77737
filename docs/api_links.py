"""Reads docstrings as transformers and diffusers write them, for the API reference (see mkdocs.yml).

[`Name`] becomes a link. Of "budget (`float`, *optional*, defaults to `1`): ..." the parentheses go: the signature says it,
with links. Those of "budget (`float`): ..." stay, without the backticks.
"""

import re

from griffe import Class, Extension, Function, Module, Object

_NAME = re.compile(r"\[`(\w[\w.]*)`\](?![\[(])")
_TYPE = re.compile(r"^( +[\w, ]+) \(([\[`][^\n]*?)\):", flags=re.MULTILINE)


class DocstringReader(Extension):
    def on_package(self, *, pkg: Module, **kwargs) -> None:
        homes = {name: member.target_path for name, member in pkg.members.items() if member.is_alias}
        for part in pkg.modules.values():
            homes |= {name: f"{part.path}.{name}" for name in part.exports or ()}
        self._rewrite(pkg, homes)

    def _rewrite(self, item: Object, homes: dict[str, str]) -> None:
        if item.docstring:
            text = _TYPE.sub(lambda match: match[1] + _plain_type(match[2]) + ":", item.docstring.value)
            item.docstring.value = _NAME.sub(lambda match: _reference(match[1], homes), text)
        for member in item.members.values():
            if isinstance(member, Module | Class | Function):
                self._rewrite(member, homes)


def _plain_type(text: str) -> str:
    return f" ({text[1:-1]})" if re.fullmatch(r"`[^`]+`", text) else ""


def _reference(name: str, homes: dict[str, str]) -> str:
    first, *rest = name.split(".")
    home = ".".join([homes[first], *rest]) if first in homes else None
    return f"[`{name}`][{home}]" if home else f"`{name}`"
