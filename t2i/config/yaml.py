"""The YAML of a config: plain values as in YAML 1.2, the line of every key, no duplicates, aliases or objects."""

import re
from typing import Any, NamedTuple

import yaml

from t2i.errors import InputError

KeyPath = tuple[str, ...]


class Document(NamedTuple):
    """One parsed document: its value, the line of every key, and the keys that occur twice (one message each)."""

    value: Any
    lines: dict[KeyPath, int]
    problems: list[str]


class _Loader(yaml.SafeLoader):
    """The safe loader with the plain values of YAML 1.2: `1e-3` and `010` are numbers as people mean them, `no`, `off`,
    `12:30` and `2024-01-01` stay text (which a boolean key still takes), true and false alone are booleans."""

    yaml_implicit_resolvers = {}


class _Dumper(yaml.SafeDumper):
    """The safe dumper, which also quotes a text that `_Loader` would take for a number."""


_FLOAT = re.compile(r"^[-+]?((\d+\.\d*|\.\d+)([eE][-+]?\d+)?|\d+[eE][-+]?\d+)$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(0|[1-9][\d_]*)$"), list("-+0123456789"))
for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def dump(tree: dict[str, Any]) -> str:
    """YAML text that `parse` and any other YAML reader take for the same values."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def parse(text: str, name: str) -> Document:
    """Reads one document; the value of an empty one is None.

    Args:
        text: the YAML.
        name: what messages call it, e.g. the path.

    Raises:
        InputError: the text is not YAML, or holds aliases, tags or keys that are no words; with the line.
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
    """Turns nodes into values, as the safe constructor does, and notes lines and duplicates on the way."""

    def __init__(self, loader: _Loader, name: str):
        self.loader, self.name = loader, name
        self.lines: dict[KeyPath, int] = {}
        self.problems: list[str] = []
        self.seen: set[int] = set()

    def document(self, root: yaml.Node) -> Document:
        return Document(self.build(root, ()), self.lines, self.problems)

    def build(self, node: yaml.Node, path: KeyPath) -> Any:
        # an alias gives the same node twice; expanding them is how a 1 kB file fills the memory
        if id(node) in self.seen:
            raise yaml.MarkedYAMLError(None, None, "aliases (*name) are not read; repeat the value", node.start_mark)
        self.seen.add(id(node))
        if isinstance(node, yaml.ScalarNode):
            return self.loader.construct_object(node)
        if node.tag not in ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
            raise yaml.MarkedYAMLError(None, None, f"the tag {node.tag} is not read", node.start_mark)
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
