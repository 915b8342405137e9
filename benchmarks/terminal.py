"""Measure some tasks and print each result as it comes; write all of them to a file."""

from pathlib import Path

from benchmarks import report
from benchmarks.report import COLUMNS, format_rows, table_rows, write_report
from benchmarks.results import Result
from benchmarks.runner import run
from benchmarks.tasks import Options


def measure_and_print(names: list[str], options: Options, path: Path | None) -> list[Result]:
    """Measure the tasks, print a row for each backend, and write the results so far to `path`, where one is given.

    Raises UserError, before the first run, for a path that cannot be written.
    """
    results: list[Result] = []
    if path:
        write_report(path, results, options)
    head = [report.load_note(), report.heading(names, options), *format_rows([COLUMNS])]
    print(*filter(None, head), sep="\n\n", flush=True)
    for result in run(names, options):
        results.append(result)
        print(*format_rows(table_rows(result)), *filter(None, [report.remark(result)]), sep="\n", flush=True)
        if path:
            write_report(path, results, options)
    return results
