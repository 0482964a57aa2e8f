"""
An extension of griffe for docstrings in the style of transformers.

- [`Name`] and [`~module.Name`] become links to the reference. A name that the package does not have, or has several
  times, is a warning, which fails the strict build.
- "name (`type` of shape ...): text" becomes "name: (`type` of shape ...) text". Then griffe takes the type from the
  signature, with links, and the reader keeps the shape. What only repeats the signature is left out.
"""

import re
from collections import defaultdict
from collections.abc import Iterator

import griffe


logger = griffe.get_logger(__name__)

REFERENCE = re.compile(r"\[`(?P<short>~?)(?P<name>[A-Za-z_][\w.]*)`\](?![\[(])")
ARGUMENT = re.compile(r"^(?P<names> +[*\w]+(?:, [*\w]+)*) \((?P<type>.+?)\): ", re.MULTILINE)
DEFAULT = re.compile(r",? (\*optional\*|defaults? to .*)|\*optional\*")
DOCTEST = re.compile(r"^( *```)python(?=\n *>>> )", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Rewrites all docstrings of a package after it is loaded."""

    def on_package(self, *, pkg: griffe.Module, **kwargs):
        names = Names(pkg)
        for obj in names.objects:
            if obj.docstring is not None:
                obj.docstring.value, problems = rewrite(obj.docstring.value, obj, names)
                for problem in problems:
                    logger.warning("The docstring of %s refers to %s", obj.path, problem)


class Names:
    """The objects of a package, by every end of their path: `method`, `Class.method`, `module.Class.method`, ..."""

    def __init__(self, package: griffe.Module):
        self.objects = list(walk(package))
        self.by_path = {obj.path: obj for obj in self.objects}
        #: Packages that this one imports. What is in them is not checked.
        self.libraries = {path.split(".")[0] for obj in self.objects for path in obj.imports.values()} - {package.name}
        self.by_end = defaultdict(list)
        for path in sorted(self.by_path):
            parts = path.split(".")
            for start in range(len(parts)):
                self.by_end[".".join(parts[start:])].append(path)

    def resolve(self, name: str, scope: griffe.Object) -> str:
        """
        The full path of `name` in the docstring of `scope`.

        First what Python would find at this place, then a member of a base class, then the only object of the package
        whose path ends with `name`. The path may be that of a library that the module imports.

        Raises:
            LookupError: if there is no such object, or several.
        """
        first, _, rest = name.partition(".")
        try:
            path = ".".join(filter(None, [scope.resolve(first), rest]))
        except griffe.NameResolutionError:
            path = name
        if path in self.by_path or path.split(".")[0] in self.libraries:
            return path
        owner = scope if scope.is_class else scope.parent
        paths = (self.inherited(owner, name) if owner is not None and owner.is_class else []) or self.by_end[name]
        if "." in name and not paths:
            *_, owner_name, member = name.split(".")
            paths = [found for path in self.by_end[owner_name] for found in self.inherited(self.by_path[path], member)]
        # A module often has the name of its main function, which is meant then.
        paths = [path for path in paths if not self.by_path[path].is_module] or paths
        if len(paths) != 1:
            raise LookupError(f"may be {', '.join(paths)}" if paths else "does not exist")
        return paths[0]

    def inherited(self, owner: griffe.Object, member: str) -> list[str]:
        """The path of `member` of the class `owner`, its own or that of the first base class which has it, in a list."""
        if member in owner.members:
            return [owner.members[member].path]
        for base in getattr(owner, "bases", ()):
            for path in self.by_end[str(base).split(".")[-1]]:
                if found := self.inherited(self.by_path[path], member):
                    return found
        return []


def walk(obj: griffe.Object) -> Iterator[griffe.Object]:
    """`obj` and all objects in it, without what it imports."""
    yield obj
    for member in obj.members.values():
        if not member.is_alias:
            yield from walk(member)


def annotated_names(scope: griffe.Object, names: Names) -> set[str]:
    """The arguments of a function, or of a class, whose types the reference shows from the signature."""
    found = set()
    if scope.is_class:
        found = {
            name
            for name, member in scope.members.items()
            if not member.is_alias and member.is_attribute and member.annotation is not None
        }
        paths = names.inherited(scope, "__init__")
        scope = names.by_path.get(paths[0]) if paths else None
    if scope is None or not scope.is_function:
        return found
    return found | {parameter.name for parameter in scope.parameters if parameter.annotation is not None}


def rewrite(text: str, scope: griffe.Object, names: Names) -> tuple[str, list[str]]:
    """Return the docstring `text` of `scope` in griffe's form, and what is wrong with the names in it."""
    problems = []

    def linked(match: re.Match) -> str:
        name = match["name"]
        shown = f"<code>{name.split('.')[-1] if match['short'] else name}</code>"
        try:
            # Not every object that exists is on a page, so the link is optional.
            return f'<autoref optional identifier="{names.resolve(name, scope)}">{shown}</autoref>'
        except LookupError as error:
            problems.append(f"`{name}`, which {error}")
            return shown

    text = REFERENCE.sub(linked, text)
    annotated = annotated_names(scope, names)

    def argument(match: re.Match) -> str:
        plain = DEFAULT.sub("", match["type"])
        if " or " in plain or " of " in plain or match["names"].strip() not in annotated:
            return f"{match['names']}: ({match['type']}) "
        return f"{match['names']}: "

    text = ARGUMENT.sub(argument, text)
    return DOCTEST.sub(r"\1pycon", text), problems
