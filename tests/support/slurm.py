"""What a process sees under SLURM, and a stand-in for its command ``scontrol``."""

import os
from pathlib import Path

JOB = {"SLURM_JOB_ID": "17", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train"}


def stand_in_scontrol(folder: Path) -> tuple[Path, str]:
    """Make an ``scontrol`` that writes down what it was asked.

    Returns:
        The file that it writes, and the PATH under which it is found.
    """
    asked, command = folder / "asked", folder / "bin" / "scontrol"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\necho "$@" > {asked}\n')
    command.chmod(0o755)
    return asked, f"{command.parent}:{os.environ['PATH']}"
