"""What a command says by its exit status, and a run by the `exit_status` of its summary."""

from typing import Final

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
"""The run itself failed, or a run that is looked at has faults."""
EXIT_WRONG: Final = 2
"""Wrong usage or input."""
EXIT_QUARANTINED: Final = 3
"""The run is there, without some of its rows."""
