"""One process of :func:`et.training.launcher.run_processes`: ``python -m et.training.launched``."""

from __future__ import annotations

from et.utils.startup import prepare

if __name__ == "__main__":  # before the imports that take time
    prepare()

import json
import os
import sys
import threading
import traceback
from pathlib import Path

from omegaconf import OmegaConf

from et.training.launcher import OWN
from et.training.run import train
from et.utils.errors import is_user_error, unwrapped


def main() -> None:
    """Train as the folder's config.yaml says; leave there a record (rank 0), or why there is none."""
    folder, rank = Path(os.environ[OWN]), os.environ["LOCAL_RANK"]
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        outcome = train(OmegaConf.load(folder / "config.yaml"))
    except Exception as error:
        user = is_user_error(error)
        message = str(unwrapped(error)) if user else f"process {rank}: {''.join(traceback.format_exception(error))}"
        (folder / f"failure.{rank}.json").write_text(json.dumps({"user": user, "message": message}))
        sys.stdout.flush()
        os._exit(1)  # the others are in the middle of a collective operation: there is nothing to wait for
    if rank == "0":
        (folder / "record.json").write_text(json.dumps(outcome.record))


def end_with_parent() -> None:
    """Wait for the end of standard input, then end this process."""
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
