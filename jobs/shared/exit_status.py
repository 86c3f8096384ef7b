"""What a command says by its exit status, and a run by the `exit_status` of its summary."""

from typing import Final

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
"""The run itself failed, or a run that is looked at has faults."""
EXIT_WRONG: Final = 2
"""Wrong usage or input."""
EXIT_QUARANTINED: Final = 3
"""The run is there, without some of its rows."""


def status_of_run(num_failed: int, failed_rows_ok: bool = False) -> int:
    """The exit status of a run that has come to its end.

    Args:
        num_failed: rows that were quarantined.
        failed_rows_ok: whether such rows are no failure, as for a job server that knows only 0 and failure.
    """
    return EXIT_QUARANTINED if num_failed and not failed_rows_ok else EXIT_OK
