"""Python and the packages: what is declared beside what is installed, and what each extra would bring."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from dalle.machine.finding import Finding

_ROOT = Path(__file__).parents[2]
"""Of the checkout, where this is one."""
_FOR_DEVELOPERS = ("test", "bench", "docs", "dev")
"""Extras that nobody lacks who uses the program."""
_MOST_TOLD = 6

Installed = Callable[[str], str | None]


@dataclass(frozen=True)
class Declared:
    """What the package says of what it needs.

    Args:
        python: versions of Python
        always: requirements
        extras: requirements of each extra, by its name
    """

    python: str
    always: tuple[str, ...]
    extras: Mapping[str, tuple[str, ...]]


def declared(root: Path = _ROOT) -> Declared | None:
    """By a checkout's `pyproject.toml`, which an older installation of it may not have heard of; else by the installed package's
    own data. Null where there is neither."""
    file = root / "pyproject.toml"
    if file.is_file() and sys.version_info >= (3, 11):
        import tomllib

        project = tomllib.loads(file.read_text(encoding="utf-8")).get("project", {})
        if project.get("name") == "dalle":
            extras = {name: tuple(each) for name, each in project.get("optional-dependencies", {}).items()}
            return Declared(project.get("requires-python", ""), tuple(project.get("dependencies", ())), extras)
    try:
        found = importlib.metadata.distribution("dalle")
    except importlib.metadata.PackageNotFoundError:
        return None
    requirements = [Requirement(text) for text in found.requires or ()]
    always = tuple(str(each) for each in requirements if _is_wanted(each, ""))
    names = found.metadata.get_all("Provides-Extra") or ()
    extras = {
        name: tuple(str(each) for each in requirements if _is_wanted(each, name) and not _is_wanted(each, ""))
        for name in names
    }
    return Declared(found.metadata["Requires-Python"] or "", always, extras)


def installed(name: str) -> str | None:
    """The version of a package; null where there is none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def python_finding(wanted: Declared | None, version: str | None = None) -> Finding:
    """Whether this Python is one that the package is made for."""
    version = version or platform.python_version()
    needed = wanted.python if wanted else ""
    fact = f"{version} on {platform.system()} {platform.machine()}"
    if needed and not Requirement(f"python{needed}").specifier.contains(version, prereleases=True):
        return Finding("python", "fail", f"{fact}, where {needed} is needed", "make an environment with another Python")
    return Finding("python", "ok", fact)


def package_findings(
    wanted: Declared | None, has: Installed = installed, constraints: Path = _ROOT / "constraints.txt"
) -> Iterator[Finding]:
    """What is needed in any case; what packages need of each other; versions that were tested together; then the extras."""
    if wanted is None:
        yield Finding(
            "packages", "warn", "the package is not installed, so what it needs is not known", "pip install -e ."
        )
        return
    wrong = _misfits(wanted.always, has)
    if wrong:
        yield Finding("packages", "fail", _listed(wrong.values()), f"pip install {_quoted(wrong)}")
    else:
        yield Finding("packages", "ok", f"all {len(wanted.always)} that are needed fit what is declared")
    among = _misfits_among(wanted.always, has)
    if among:
        yield Finding("packages' own", "warn", _listed(among.values()), f"pip install {_quoted(among)}")
    if constraints.is_file():
        yield _tested_together(constraints, has)
    for name, requirements in wanted.extras.items():
        if name not in _FOR_DEVELOPERS:
            yield _extra(name, tuple(dict.fromkeys(_brought(requirements, wanted.extras))), has)


def _brought(requirements: tuple[str, ...], extras: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    """What an extra brings: of others that it names, what they bring."""
    for text in requirements:
        requirement = Requirement(text)
        if canonicalize_name(requirement.name) != "dalle":
            yield text
            continue
        for other in sorted(requirement.extras):
            yield from _brought(extras.get(other, ()), extras)


def _extra(name: str, requirements: tuple[str, ...], has: Installed) -> Finding:
    parsed = [Requirement(text) for text in requirements]
    told = ", ".join(each.name for each in parsed)
    wrong = _misfits(requirements, has)
    if not wrong:
        return Finding(f"extra {name}", "ok", f"{told} are there" if len(parsed) > 1 else f"{told} is there")
    return Finding(f"extra {name}", "warn", _listed(wrong.values()), f"pip install 'dalle[{name}]'")


def _misfits(requirements: tuple[str, ...], has: Installed) -> dict[str, str]:
    """What does not fit: the requirement, and what is there in its place."""
    wrong = {}
    for requirement in map(Requirement, requirements):
        if not _is_wanted(requirement, ""):
            continue
        if why := _misfit(requirement, has(requirement.name)):
            wrong[f"{requirement.name}{requirement.specifier}"] = why
    return wrong


def _misfit(requirement: Requirement, version: str | None) -> str:
    needed = str(requirement.specifier)
    if version is None:
        return f"{requirement.name} is missing"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{requirement.name} is {version}, where {needed} is needed"
    return ""


def _misfits_among(requirements: tuple[str, ...], has: Installed) -> dict[str, str]:
    """What the packages that are needed, and those that these need, want of one another."""
    wrong: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    # those that are declared are told already
    left = [(each, "") for each in map(Requirement, requirements) if has(each.name) is not None]
    while left:
        requirement, by = left.pop()
        if by and (why := _misfit(requirement, has(requirement.name))):
            wrong.setdefault(f"{requirement.name}{requirement.specifier}", f"{why} by {by}")
            continue
        for extra in ("", *sorted(requirement.extras)):
            key = (canonicalize_name(requirement.name), extra)
            if key in seen:
                continue
            seen.add(key)
            try:
                texts = importlib.metadata.requires(requirement.name) or ()
            except importlib.metadata.PackageNotFoundError:
                continue
            further = [each for each in map(Requirement, texts) if _is_wanted(each, extra)]
            left += [(each, requirement.name) for each in further]
    return wrong


def _tested_together(constraints: Path, has: Installed) -> Finding:
    pinned = [
        Requirement(text)
        for line in constraints.read_text(encoding="utf-8").splitlines()
        if (text := re.sub(r"#.*", "", line).strip())
    ]
    others = [
        f"{each.name} is {version} ({str(each.specifier).removeprefix('==')} was tested)"
        for each in pinned
        if _is_wanted(each, "")
        and (version := has(each.name)) is not None
        and not each.specifier.contains(version, prereleases=True)
    ]
    if not others:
        return Finding("tested versions", "ok", "all that are installed are those of constraints.txt")
    return Finding(
        "tested versions", "warn", _listed(others), "where something fails, pip install -c constraints.txt -e ."
    )


def _is_wanted(requirement: Requirement, extra: str) -> bool:
    """By this Python and platform, where an extra was asked for."""
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _quoted(requirements: Mapping[str, str]) -> str:
    return " ".join(f"'{each}'" for each in requirements)


def _listed(parts: Iterable[str]) -> str:
    parts = list(parts)
    more = f", and {len(parts) - _MOST_TOLD} more" if len(parts) > _MOST_TOLD else ""
    return ", ".join(parts[:_MOST_TOLD]) + more
