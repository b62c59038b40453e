"""The command line in processes of torchrun, of which one is killed and one hangs.

`torchrun ... -m tests.integration.faults ARGUMENTS` runs `curricle ARGUMENTS`. The last process
gets SIGKILL in the first attempt, and waits for ever in the second.
"""

import os
import signal

from curricle.cli.app import main as run_command
from curricle.training.loop.stage_loss import StepLoss
from curricle.training.loop.stepping import Stepper

KILLED, HANGING = 9, 13
"""Steps of the student before which the first and the second attempt end."""


def main() -> None:
    """Run the command with faults."""
    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    is_last = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1
    take_step = Stepper.step

    def faulty_step(self: Stepper, step: int, *, stop: int = 0) -> StepLoss:
        is_student = is_last and self.run.teacher is not None
        if is_student and attempt == 0 and step == KILLED:
            os.kill(os.getpid(), signal.SIGKILL)
        if is_student and attempt == 1 and step == HANGING:
            # Otherwise the run would note the signal by which torchrun ends processes, and wait on.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.pause()
        return take_step(self, step, stop=stop)

    Stepper.step = faulty_step  # type: ignore[method-assign]
    run_command()


if __name__ == "__main__":
    main()
