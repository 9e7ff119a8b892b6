"""How a job ended, as one number."""

import re

# As the jobs themselves: 0 done, 1 refused or failed, 3 stopped and `--resume` continues,
# 130 interrupted before anything could be saved.
STOPPED_WITH_CHECKPOINT = 3
INTERRUPTED = 130
_STATUS = re.compile(r"^\[exit status (\d+)\]$", re.MULTILINE)


def status_line(status: int) -> str:
    """The last line of a job's log."""
    return f"[exit status {status}]"


def exit_code(ray_status: str, driver_exit_code: int | None, log: str) -> int:
    """One exit code from what Ray knows of an ended job.

    Args:
        ray_status: SUCCEEDED, FAILED or STOPPED.
        driver_exit_code: of the entry point; Ray has none for a stopped job.
        log: its log, or the end of it.

    A job stopped without a last line was killed before it could save anything: 130.
    """
    if ray_status == "SUCCEEDED":
        return 0
    if driver_exit_code is not None and driver_exit_code != 0:
        return driver_exit_code if driver_exit_code > 0 else 128 - driver_exit_code
    if ray_status == "FAILED":
        return 1
    lines = _STATUS.findall(log)
    return int(lines[-1]) if lines else INTERRUPTED
