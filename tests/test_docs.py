"""The pages say what is there: links lead somewhere, commands and their options exist, and every room is named."""

from __future__ import annotations

import importlib
import re
import subprocess
from configparser import ConfigParser
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = {"ckd-cache": "teacher_cache.cli", "ckd-train": "student_train.cli", "ckd-pipeline": "pipeline"}
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"```.*?```", re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", CODE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links_of(page: Path) -> list[tuple[Path, str]]:
    """(file, anchor) of each link that stays within the repository."""
    targets = [target for target in LINK.findall(CODE.sub("", page.read_text())) if "://" not in target]
    parts = [target.partition("#") for target in targets]
    return [((page.parent / path).resolve() if path else page, anchor) for path, _, anchor in parts]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    for target, anchor in links_of(page):
        assert target.exists(), target
        assert not anchor or anchor in anchors(target), f"{target}#{anchor}"


def test_prose_keeps_to_the_width_of_the_code():
    for page in PAGES:
        # Entries of the page of losses are made from the classes, formulas on one line.
        if page.name != "losses.md":
            prose = [line for line in CODE.sub("", page.read_text()).splitlines() if not line.startswith("|")]
            assert max(map(len, prose)) <= 120, page


def test_every_page_is_reached_from_the_readme():
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page not in reached and page.suffix == ".md":
            reached.add(page)
            waiting += [target for target, _ in links_of(page)]
    assert reached >= set(PAGES)


def test_every_room_is_named_in_the_readme():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    rooms = setup["importlinter"]["root_packages"].split()
    listed = re.search(r"## The rooms\n\n```\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert listed is not None
    named = {line.split()[0] for line in listed[1].splitlines()}
    assert named >= {*(f"{room}/" for room in rooms), "pipeline.py"}


def test_the_page_on_where_things_are_names_what_is_there_and_fits_a_screen():
    text = (ROOT / "docs" / "where.md").read_text()
    paths = [name for name in re.findall(r"`([\w./-]+)`", text) if "/" in name]
    assert len(paths) > 20
    missing = [name for name in paths if not (ROOT / name).exists()]
    assert not missing
    assert len(text.splitlines()) < 60


def code_on(page: Path) -> list[str]:
    """Shell blocks and pieces of code in the text, each on lines of its own."""
    text = page.read_text()
    blocks = [re.sub(r"\\\n\s*", " ", block) for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)]
    pieces = [" ".join(piece.split()) for piece in re.findall(r"`([^`]+)`", CODE.sub("", text))]
    return [*blocks, *pieces]


def shown_commands() -> list[tuple[str, str]]:
    """(page, command line) of every use of one of our commands."""
    lines = [
        (page.name, line.split("  #")[0]) for page in PAGES for code in code_on(page) for line in code.splitlines()
    ]
    return [(page, line) for page, line in lines if line.split(" ")[0] in COMMANDS]


def test_every_command_that_is_shown_exists_with_its_options():
    shown = shown_commands()
    assert len(shown) > 50
    for page, line in shown:
        name, *words = line.split()
        command: click.Command = importlib.import_module(COMMANDS[name]).main
        context = click.Context(command)
        while words and isinstance(command, click.Group) and words[0] in command.list_commands(context):
            command = command.get_command(context, words.pop(0))
        if words and words[0] == "...":  # of every subcommand
            assert isinstance(command, click.Group), (page, line)
            continue
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        assert {*re.findall(r"--[a-z][a-z-]*", line)} <= known, (page, line)
        if isinstance(command, click.Group) and not command.invoke_without_command:
            assert not words, (page, line)


def test_every_make_target_and_benchmark_that_is_shown_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for code in code_on(page):
            assert {*re.findall(r"\bmake ([a-z-]+)", code)} <= targets, page
            for module in re.findall(r"python -m (benchmarks\.\w+)", code):
                assert (ROOT / f"{module.replace('.', '/')}.py").exists(), (page, module)


def test_every_benchmark_is_on_the_page_of_benchmarks():
    page = (ROOT / "benchmarks" / "README.md").read_text()
    files = subprocess.run(["git", "ls-files", "benchmarks/*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    programs = [Path(name) for name in files.stdout.split() if "__main__" in (ROOT / name).read_text()]
    assert programs
    for path in programs:
        assert f"`python -m benchmarks.{path.stem}`" in page


def test_every_test_and_grid_that_is_shown_exists():
    for page in PAGES:
        for code in code_on(page):
            for name in re.findall(r"\b((?:tests|grids)/[\w/-]+\.(?:py|yaml))", code):
                assert (ROOT / name).exists(), (page, name)
