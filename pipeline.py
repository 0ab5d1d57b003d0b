"""Both stages in one place: `ckd-pipeline`.

`demo` (experiments/demo.py) is the whole project in one short program; the other commands are about grids of runs.
"""

from __future__ import annotations

import click

from ground.terminal import CommandAt, CommandGroup

_COMMANDS = {
    "demo": CommandAt(
        "experiments.demo:demo_command",
        "Run both stages on scikit-learn's handwritten digits; run it again to go on, or to see the table again.",
    ),
    "run": CommandAt(
        "experiments.commands.run:run_command",
        "Run a grid of experiments: GRID is a YAML file that docs/pipeline.md describes.",
    ),
    "status": CommandAt(
        "experiments.commands.status:status_command",
        "Say how far the grid in FOLDER is, while it runs or after; nothing is written.",
    ),
    "report": CommandAt(
        "experiments.commands.report:report_command",
        "Write FOLDER/report.html, one page that needs no network, with its tables and figures beside it in report/.",
    ),
    "until": CommandAt(
        "experiments.commands.until:until_command",
        "Ask how many teacher calls an accuracy takes: buy them in steps, train, and stop when it is reached.",
    ),
}


@click.group(cls=CommandGroup, lazy=_COMMANDS)
@click.version_option(package_name="teacher-cache")
def main() -> None:
    """Both stages in one command.

    Exit status: 0 done, 1 a check failed, 2 bad usage or bad input, 3 refused by budget, 130 interrupted.
    """


if __name__ == "__main__":
    main()
