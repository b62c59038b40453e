"""Files for coding agents, made of the docs: `llms.txt` and `skills/curricle/SKILL.md`.

    make docs

`llms.txt` (the format of llmstxt.org) lists the pages with their summaries and sections. The skill
file holds the passages of README and guide that a first use of the library needs, and the commands
with their help.
"""

import re
from pathlib import Path

import typer

from curricle.cli.app import app

REPOSITORY = Path(__file__).parents[1]
INDEX = REPOSITORY / "llms.txt"
SKILL = REPOSITORY / "skills" / "curricle" / "SKILL.md"
PAGES = {
    "Use": ("guide", "examples", "api", "spec", "records"),
    "Measurements": ("methods", "reproduction", "performance", "scaling", "reliability", "journal"),
    "Background": ("theory", "architecture"),
}
"""Names of the pages of `docs/`, by the heading of the list they stand under."""


def main() -> None:
    """Write both files."""
    SKILL.parent.mkdir(parents=True, exist_ok=True)
    INDEX.write_text(index())
    SKILL.write_text(skill())


def index() -> str:
    """Return the text of `llms.txt`."""
    readme = (REPOSITORY / "README.md").read_text()
    lines = ["# curricle", "", f"> {first_paragraph(readme)}"]
    for heading, names in PAGES.items():
        lines += ["", f"## {heading}", ""]
        for name in names:
            page = (REPOSITORY / "docs" / f"{name}.md").read_text()
            sections = ", ".join(titles(page))
            summary = f"{first_sentence(page)} Sections: {sections}.".strip()
            lines.append(f"- [{title(page)}](docs/{name}.md): {summary}")
    lines += ["", "## Examples", ""]
    lines += [f"- [{path.name}](examples/{path.name})" for path in examples()]
    return "\n".join(lines) + "\n"


def skill() -> str:
    """Return the text of the skill file."""
    readme = (REPOSITORY / "README.md").read_text()
    guide = (REPOSITORY / "docs" / "guide.md").read_text()
    head = (
        "---\n"
        "name: curricle\n"
        "description: Distil a PyTorch or Hugging Face teacher into a smaller student with "
        "curricle (extraction, progressive distillation, one-shot, labels), compared on equal "
        "budgets.\n"
        "---\n"
    )
    parts = [head, "# curricle\n", first_paragraph(readme) + "\n", "## First use\n"]
    parts.append(linked(section(readme, "In Python"), ""))
    parts += ["## When to use what\n", linked(section(guide, "When to use what"), "docs/")]
    parts += ["## Commands\n", commands()]
    return "\n".join(parts)


def commands() -> str:
    """Return a list of the commands with the first sentence of their help."""
    group = typer.main.get_group(app)
    return "".join(
        f"- `curricle {name}`: {command.get_short_help_str(limit=200)}\n"
        for name, command in group.commands.items()
    )


def title(page: str) -> str:
    """Return the title of a page."""
    return page.split("\n", 1)[0].removeprefix("# ")


def titles(page: str) -> list[str]:
    """Return the titles of the sections of a page."""
    return re.findall(r"^## (.+)$", page, flags=re.MULTILINE)


def first_paragraph(page: str) -> str:
    """Return the paragraph below the title on one line without emphasis; empty if a section is."""
    paragraph = page.split("\n\n", 2)[1]
    return "" if paragraph.startswith("#") else " ".join(paragraph.split()).replace("**", "")


def first_sentence(page: str) -> str:
    """Return the first sentence below the title, with links as plain words."""
    sentence = re.match(r".*?\.(?= [A-Z]|$)", first_paragraph(page))
    return "" if sentence is None else re.sub(r"\[(.+?)\]\(.*?\)", r"\1", sentence[0])


def section(page: str, name: str) -> str:
    """Return the text of a section without its heading."""
    return page.split(f"\n## {name}\n", 1)[1].split("\n## ", 1)[0].strip() + "\n"


def linked(text: str, folder: str) -> str:
    """Return a text whose links lead from the folder of the skill file.

    Args:
        text: Text of a page.
        folder: Folder of the page, with a slash at the end; empty for the root.
    """
    return re.sub(r"\]\((?!https?:|#)", f"](../../{folder}", text).replace(
        "](#", f"](../../{folder}guide.md#"
    )


def examples() -> list[Path]:
    """Return the example scripts."""
    return sorted((REPOSITORY / "examples").glob("*.py"))


if __name__ == "__main__":
    main()
