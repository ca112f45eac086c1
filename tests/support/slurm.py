"""The environment of a SLURM job, and a fake ``scontrol`` command."""

import os
from pathlib import Path

JOB = {"SLURM_JOB_ID": "17", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train"}


def stand_in_scontrol(folder: Path) -> tuple[Path, str]:
    """Create an ``scontrol`` that records its arguments.

    Returns:
        The file with the arguments, and the PATH that contains the command.
    """
    asked, command = folder / "asked", folder / "bin" / "scontrol"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\necho "$@" > {asked}\n')
    command.chmod(0o755)
    return asked, f"{command.parent}:{os.environ['PATH']}"
