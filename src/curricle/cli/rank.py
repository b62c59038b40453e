"""The command line in one of the processes of `cli.launching`, as `python -m curricle.cli.rank`.

Its error sentence goes to the launcher, which prints that of one process. It does not outlive the
launcher.
"""

import os
from functools import partial
from pathlib import Path

from curricle.cli.app import main, print_mistake
from curricle.cli.launching import end_with_launcher, leave_mistake

# Worker processes import this module again under another name.
if __name__ == "__main__":
    end_with_launcher()
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    main(partial(leave_mistake, file=Path(file)) if file else print_mistake)
