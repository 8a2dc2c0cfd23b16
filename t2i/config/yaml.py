"""Parses the YAML of a config: scalars as in YAML 1.2, the line of every key, and no duplicates, aliases or objects."""

import re
from typing import Any, NamedTuple

import yaml

from t2i.errors import InputError

KeyPath = tuple[str, ...]


class Document(NamedTuple):
    """A parsed document: its value, the line of every key, and one message for each key that occurs twice."""

    value: Any
    lines: dict[KeyPath, int]
    problems: list[str]


class _Loader(yaml.SafeLoader):
    """The safe loader with the scalars of YAML 1.2: `1e-3` and `010` are decimal numbers; `no`, `off`, `12:30` and
    `2024-01-01` are text (boolean keys still accept `no` and `off`); only true and false are booleans."""

    yaml_implicit_resolvers = {}


class _Dumper(yaml.SafeDumper):
    """The safe dumper, which also quotes text that `_Loader` would read as a number."""


_FLOAT = re.compile(r"^[-+]?((\d+\.\d*|\.\d+)([eE][-+]?\d+)?|\d+[eE][-+]?\d+)$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(0|[1-9][\d_]*)$"), list("-+0123456789"))
for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def dump(tree: dict[str, Any]) -> str:
    """Returns YAML text that `parse` and every other YAML reader read as the same values."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def parse(text: str, name: str) -> Document:
    """Reads one document; the value of an empty one is None.

    Args:
        text: the YAML text.
        name: its name in messages, e.g. the path.

    Raises:
        InputError: the text is not YAML, or has aliases, tags or keys that are not scalars; the message names the line.
    """
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        return Document(None, {}, []) if root is None else _Builder(loader, name).document(root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise InputError(f"{name}{f' line {mark.line + 1}' if mark else ''}: {error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise InputError(f"{name}: {reason[:200]}") from error


class _Builder:
    """Builds values from nodes as the safe constructor does, and records lines and duplicate keys."""

    def __init__(self, loader: _Loader, name: str):
        self.loader, self.name = loader, name
        self.lines: dict[KeyPath, int] = {}
        self.problems: list[str] = []
        self.seen: set[int] = set()

    def document(self, root: yaml.Node) -> Document:
        return Document(self.build(root, ()), self.lines, self.problems)

    def build(self, node: yaml.Node, path: KeyPath) -> Any:
        # an alias returns the same node again; expanding aliases would let a 1 kB file fill the memory
        if id(node) in self.seen:
            raise yaml.MarkedYAMLError(
                None, None, "aliases (*name) are not supported; repeat the value", node.start_mark
            )
        self.seen.add(id(node))
        if isinstance(node, yaml.ScalarNode):
            return self.loader.construct_object(node)
        if node.tag not in ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
            raise yaml.MarkedYAMLError(None, None, f"the tag {node.tag} is not supported", node.start_mark)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*path, str(i))) for i, item in enumerate(node.value)]
        out: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(None, None, "a key must be a word", key_node.start_mark)
            here, line = (*path, str(key_node.value)), key_node.start_mark.line + 1
            if here in self.lines:
                where = f"{self.name}, lines {self.lines[here]} and {line}"
                self.problems.append(f"{'.'.join(here)}: occurs twice in {where}; keep one")
            self.lines[here] = line
            out[here[-1]] = self.build(value_node, here)
        return out
