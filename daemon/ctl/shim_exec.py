"""`shimctl shim exec`: an exec asked of the shim itself."""

import argparse
import json
import os

from daemon.ctl.commands import Command
from daemon.ctl.errors import EXIT_FAILED, CtlError, exit_code_of_failure, sentence_of
from daemon.ctl.execute import exec_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from daemon.ctl.bundles import Bundle
    from daemon.ctl.pump import Ending
    from ttrpc.api import tasks


class ShimSide:
    """Where `execute.exec_in` sends its calls when the shim itself is asked."""

    def __init__(self, bundle: "Bundle", state: str) -> None:
        from daemon.ctl.bundles import NAMESPACE_KEY
        from daemon.ctl.fifos import folder_of

        self._bundle = bundle
        self.container_id = bundle.container_id
        self.address = bundle.address
        self.fifo_folder = folder_of(state, bundle.namespace, bundle.container_id) if bundle.is_foreign else ""
        self.metadata = {NAMESPACE_KEY: bundle.namespace}

    def add(self, request: "tasks.ExecProcessRequest") -> None:
        from daemon.ctl.session import TASK
        from ttrpc.api import task

        asked = task.ExecProcessRequest(id=request.container_id, exec_id=request.exec_id, spec=request.spec)
        asked.terminal, asked.stdin = request.terminal, request.stdin
        asked.stdout, asked.stderr = request.stdout, request.stderr
        self._bundle.call(TASK, "Exec", asked)

    def start(self, exec_id: str) -> None:
        from daemon.ctl.session import TASK
        from ttrpc.api import task

        self._bundle.call(TASK, "Start", task.StartRequest(id=self.container_id, exec_id=exec_id))

    def forget(self, exec_id: str) -> None:
        from daemon.ctl.session import TASK
        from ttrpc.api import task

        self._bundle.call(TASK, "Delete", task.DeleteRequest(id=self.container_id, exec_id=exec_id))

    def code_of(self, ending: "Ending", exec_id: str) -> int:
        from daemon.ctl import exits
        from daemon.ctl.pump import EXITED

        if ending.kind == EXITED:
            assert ending.record is not None
            return exits.answer(exits.exit_code(ending.record), exec_id)
        raise CtlError(
            f"lost the shim of {self.container_id}: {ending.reason}",
            hint=f"shimctl shim wait --exec {exec_id} {self.container_id}",
        )


def execute(args: argparse.Namespace) -> int:
    """`shimctl shim exec`."""
    from daemon.ctl.bundles import find, read
    from daemon.ctl.execute import check_streams, exec_in, process_of, split_exec_words
    from ttrpc.errors import StatusError

    container_id, command = split_exec_words(args.words)
    check_streams(args)
    bundle = find(args, container_id)
    try:
        spec = json.loads(read(os.path.join(bundle.path, "config.json")))
    except ValueError:
        raise CtlError(f"{bundle.path}/config.json cannot be read", hint="the bundle is damaged or half made") from None
    try:
        return exec_in(args, ShimSide(bundle, args.state), process_of(args, spec, bundle.path, command))
    except StatusError as error:
        message, hint = sentence_of(error)
        raise CtlError(message, hint=hint, exit_code=exit_code_of_failure(message) or EXIT_FAILED) from None


EXEC = Command(
    execute,
    usage="shimctl shim exec [OPTIONS] ID COMMAND [ARG…]",
    description="""\
Asks the shim itself, so it works with the daemon down. Run a program in the container; its exit code becomes ours.
""",
    examples="  shimctl shim exec web ps\n",
    options=exec_options,
    passes_code=True,
)
