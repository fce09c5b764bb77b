"""`testbed report`: stored results again, one or several side by side."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("report")
@click.argument(
    "files", metavar="RESULT...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option("--html", type=click.Path(path_type=Path), help="Write the page to this file.")
def report_command(files: tuple[Path, ...], html: Path | None) -> None:
    """Show a stored result again, or several side by side; with --html as a page.

    Results of 'testbed migrate' and of 'testbed log --parse' stand beside one another: what was
    measured on real hosts beside what was emulated. Differences are against the first.
    """
    from rich.console import Console

    from testbed.report import comparison_page, page, store, table
    from testbed.report.result import MigrationResult

    results = [store.read_any(file) for file in files]
    alone = results[0]
    if len(results) > 1 or not isinstance(alone, MigrationResult):
        if html is None:
            console = Console()
            # A pipe or a file has no width of its own.
            console = Console(width=console.width if console.is_terminal else 160)
            console.print(table.side_by_side(results))
        else:
            comparison_page.write_page(results, html)
    elif html is None:
        Console().print(table.render(alone))
    else:
        page.write_page(alone, html)
    if html is not None:
        click.echo(f"page: {html}")
