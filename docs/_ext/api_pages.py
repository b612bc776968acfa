"""Writes one page for each room of the package, so that the API reference follows the code.

A room is a package or a module directly under ``dmole``. Its public names are those of its
``__all__``; a package without one publishes what its modules and sub-packages publish, and a module
the documented classes and functions that it defines.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from importlib import import_module
from inspect import getdoc, isclass, isroutine
from pathlib import Path
from types import ModuleType
from typing import Any, get_origin

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.domains.python import PythonDomain
from sphinx.environment import BuildEnvironment
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.typing import ExtensionMetadata

import dmole

FOLDER = "api"


def rooms() -> list[str]:
    """Return the dotted names of the rooms, in the order of the alphabet."""
    found = pkgutil.iter_modules(dmole.__path__)
    return sorted(f"dmole.{module.name}" for module in found if not module.name.startswith("_"))


def public_names(room: str) -> list[str]:
    """Return the dotted names that a room publishes."""
    module = import_module(room)
    if hasattr(module, "__all__"):
        return [f"{room}.{name}" for name in sorted(module.__all__) if not name.startswith("__")]
    return [*_defined(module), *(name for part in _parts(module) for name in public_names(part))]


def page(room: str) -> str:
    """Return the page of a room in reStructuredText."""
    names = public_names(room)
    lines = [room, "=" * len(room), "", f".. automodule:: {room}", "   :no-members:", ""]
    lines += [f"* :py:obj:`~{name}`: {_summary(name)}" for name in names]
    for name in names:
        value = _resolve(name)
        if _directive(value) == "py:data":
            module, _, plain = name.rpartition(".")
            lines += [
                "",
                f".. py:data:: {plain}",
                f"   :module: {module}",
                "",
                f"   {_summary(name)}",
            ]
            continue
        lines += ["", f".. {_directive(value)}:: {name}"]
        if isclass(value) and value.__bases__ != (object,):
            lines += ["   :show-inheritance:"]
    return "\n".join([*lines, ""])


def write_pages(app: Sphinx) -> None:
    """Write the pages of all rooms; a page that has not changed is left alone."""
    folder = Path(app.srcdir) / FOLDER
    folder.mkdir(exist_ok=True)
    pages = {folder / f"{room}.rst": page(room) for room in rooms() if public_names(room)}
    for stale in set(folder.iterdir()) - set(pages):
        stale.unlink()
    for path, text in pages.items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def resolve_short_name(
    app: Sphinx, env: BuildEnvironment, node: Any, contnode: nodes.TextElement
) -> nodes.TextElement | None:
    """Find the entry of a name that is written short or by the module that defines it.

    Annotations name a class as its file does (``Batch``, ``dmole.data.collate.Batch``); its entry
    is in the room (``dmole.data.Batch``). What the package holds but does not publish is left as
    plain text; a name that does not exist stays unresolved, and the strict build stops at it.
    """
    if node.get("refdomain") != "py":
        return None
    target = str(node["reftarget"])
    domain = env.domains["py"]
    assert isinstance(domain, PythonDomain)
    found = [
        (name, entry)
        for name, entry in domain.objects.items()
        if name.rpartition(".")[2] == target.rpartition(".")[2]
        and entry.objtype in ("class", "function", "exception", "data")
        and not entry.aliased
    ]
    if "." in target and not target.startswith("dmole."):
        return None
    if len(found) != 1:
        return contnode if "." in target and _exists(target) else None
    ((name, entry),) = found
    return domain_reference(app, node["refdoc"], entry.docname, entry.node_id, contnode, name)


def domain_reference(
    app: Sphinx, source: str, target: str, anchor: str, child: nodes.Node, title: str
) -> nodes.reference:
    """Return a link from one page to an entry of another."""
    uri = app.builder.get_relative_uri(source, target) if source != target else ""
    reference = nodes.reference("", "", internal=True, refuri=f"{uri}#{anchor}", reftitle=title)
    reference += child
    return reference


def _parts(module: ModuleType) -> list[str]:
    """Return the dotted names of what a package holds, private modules left out."""
    found = pkgutil.iter_modules(getattr(module, "__path__", []), f"{module.__name__}.")
    return [part.name for part in found if not part.name.rpartition(".")[2].startswith("_")]


def _modules(module: ModuleType) -> Iterator[ModuleType]:
    yield module
    for name in _parts(module):
        yield from _modules(import_module(name))


def _defined(module: ModuleType) -> list[str]:
    return [
        f"{module.__name__}.{name}"
        for name, value in sorted(vars(module).items())
        if not name.startswith("_")
        and (isclass(value) or isroutine(value))
        and value.__module__ == module.__name__
        and value.__doc__
    ]


def _resolve(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)


def _summary(name: str) -> str:
    """Return the first paragraph of a docstring, or the text below a plain value."""
    value = _resolve(name)
    text = getdoc(value) if isclass(value) or isroutine(value) else _text_below(name)
    return " ".join((text or "").partition("\n\n")[0].split())


def _text_below(name: str) -> str:
    """Return the string below the assignment of a plain value, or say what kind of value it is."""
    room, _, attribute = name.rpartition(".")
    for module in _modules(import_module(room)):
        documented = ModuleAnalyzer.for_module(module.__name__).find_attr_docs()
        if ("", attribute) in documented:
            return " ".join(documented["", attribute])
    value = _resolve(name)
    if get_origin(value) is not None:
        return f"The type `{value}`.".replace("typing.", "")
    return f"A `{type(value).__name__}`" + (
        f" of {len(value)}." if hasattr(value, "__len__") else "."
    )


def _directive(value: Any) -> str:
    if isclass(value):
        return "autoexception" if issubclass(value, BaseException) else "autoclass"
    return "autofunction" if isroutine(value) else "py:data"


def _exists(name: str) -> bool:
    """Return whether a dotted name leads to something in the package."""
    try:
        return pkgutil.resolve_name(name) is not None
    except (ImportError, AttributeError, ValueError):
        return False


def ignore_unpublished_types(app: Sphinx) -> None:
    """Let annotations name types of the package that no room publishes and that have no entry."""
    unpublished = {
        name
        for module in _modules(dmole)
        for name, value in vars(module).items()
        if get_origin(value) is not None or isclass(value)
    }
    names = {("py:class", name) for name in unpublished}
    app.config.nitpick_ignore = {*app.config.nitpick_ignore, *names}


def keep_sentence_of_property(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Keep napoleon from reading the words before a colon as the type of a property."""
    if what == "property":
        lines[:0] = [".. a comment, which has no colon", ""]


def setup(app: Sphinx) -> ExtensionMetadata:
    """Write the pages before Sphinx reads the source folder."""
    app.connect("builder-inited", write_pages)
    app.connect("builder-inited", ignore_unpublished_types)
    app.connect("autodoc-process-docstring", keep_sentence_of_property, priority=400)
    app.connect("missing-reference", resolve_short_name)
    app.config.autodoc_default_options = {"members": True}
    return {"parallel_read_safe": True, "parallel_write_safe": True}
