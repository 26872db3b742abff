"""The copies that wait to be shims, the templates they are made by, and the shims that wait for a copy."""

import time

from shim.core.loop import READ
from shim.keeper.births import REFUSALS, Birth
from shim.keeper.copy import MESSAGE_MAX_BYTES
from shim.keeper.template import Template, fork_template

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from shim.core.loop import Loop, Timer
    from shim.core.shimlog import ShimLog
    from shim.keeper.births import Succession
    from shim.keeper.wards import Ward

# Copies that wait to be shims: what has to be forked for a `start` is forked before it.
SPARES = 2
COPY_AGAIN_S = 0.1  # after a copy died by itself
# A template forks in milliseconds. One that has not for so long is stopped or stuck, and successors wait for it.
STUCK_S = 10.0
# How long a request may wait for a copy: less than who asked waits (launch.ANSWER_S), who is to find bundle and address
# free then. Who asks a new keeper waits longer (launch.YOUNG_ANSWER_S, for as long as YOUNG_S says).
BIRTH_S = 1.5
NEW_S, NEW_BIRTH_S = 10.0, 5.0
# After a template died: one that dies of its rehearsal is not to keep us busy.
AGAIN_S = 60.0


class Nursery:
    """Owns the templates, the copies until they are shims, and the births until then. ``on_birth`` gets the born.

    Raises, when made: OSError when there is no room for one more process.
    """

    def __init__(self, loop: "Loop", folder: str, log: "ShimLog", on_birth: "Callable[[Ward], None]") -> None:
        self.loop = loop
        self.folder = folder
        self.log = log
        self.on_birth = on_birth
        self.is_dismissed = False
        self.has_rehearsed = False  # the template in use
        self._made_at = time.monotonic()
        self.templates: dict[int, Template] = {}
        self.coming: dict[socket.socket, Timer] = {}  # copies that were ordered, and when they are late
        self.spares: dict[socket.socket, int] = {}  # copies that wait, and their pids
        self._again: Timer | None = None
        self.births: dict[Birth | Succession, Timer | None] = {}  # in the order they were asked for
        self.template = self._make_template()
        self.better: Template | None = None  # one that rehearses, and takes over then
        self._order_copies()
        self.loop.call_soon(self._improve)

    def pids(self) -> "set[int]":
        """The children of the keeper that are no shims."""
        return {*self.templates, *self.spares.values()}

    # --- births

    def expect(self, birth: "Birth") -> None:
        """Make it a shim as soon as there is a copy. Order: from here on its connection is the nursery's."""
        wait_s = NEW_BIRTH_S if time.monotonic() - self._made_at < NEW_S else BIRTH_S
        late = f"no copy was ready within {wait_s:g} s"
        self.births[birth] = self.loop.call_later(wait_s, lambda: self._give_up(birth, late))
        # Who hangs up starts the shim by itself, and needs bundle and address at once.
        self.loop.register(birth.connection.fileno(), READ, lambda _mask: self._give_up(birth, "it did not wait"))
        self._give_births()

    def expect_successor(self, succession: "Succession") -> None:
        """The same for a shim that died: before everybody else, for its clients wait already, and without a limit."""
        self.births = {succession: None, **self.births}
        self._give_births()

    def _give_up(self, birth: "Birth", why: str) -> None:
        self._take(birth)
        birth.give_up(TimeoutError(why))

    def _take(self, birth: "Birth | Succession") -> None:
        """Its turn has come, or it is given up: nobody else waits for it any more."""
        timer = self.births.pop(birth)
        if timer is not None:
            timer.cancel()
        if isinstance(birth, Birth):
            self.loop.unregister(birth.connection.fileno())

    def _give_births(self) -> None:
        """Make the copies that wait the shims that were asked for, and have others made in their place."""
        while self.births and self.spares:
            birth = next(iter(self.births))
            self._take(birth)
            spare, pid = self.spares.popitem()
            self.loop.unregister(spare.fileno())
            ward = None
            try:
                ward = birth.complete(spare, pid)
            except REFUSALS as error:
                birth.refuse(error)
            if ward is not None:
                self.on_birth(ward)
            else:
                spare.close()
        self._order_copies()

    # --- copies

    def _order_copies(self) -> None:
        """Have as many copies waiting as there are shims to be, and some to spare for the next.

        More there are when who asked did not wait: those end, for each is a process.
        """
        while len(self.spares) > len(self.births) + SPARES:
            self._drop_copy(next(iter(self.spares)))
        while not self.is_dismissed and len(self.spares) + len(self.coming) < len(self.births) + SPARES:
            try:
                spare = self.template.copy()
            except OSError:  # it is dead, and there will be another; or we have no fds left
                self._order_later()
                return
            self.coming[spare] = self.loop.call_later(STUCK_S, self._despair)
            self.loop.register(spare.fileno(), READ, lambda _mask, spare=spare: self._copy_says(spare))  # type: ignore[misc]

    def _order_later(self) -> None:
        if self._again is None:
            self._again = self.loop.call_later(COPY_AGAIN_S, self._order_again)

    def _order_again(self) -> None:
        self._again = None
        self._order_copies()

    def _copy_says(self, spare: "socket.socket") -> None:
        """Its pid, once; otherwise it has died."""
        try:
            message = spare.recv(MESSAGE_MAX_BYTES)
        except OSError:
            message = b""
        if not message:
            self._drop_copy(spare)
            self._order_later()
            return
        self.coming.pop(spare).cancel()
        self.spares[spare] = int(message)
        self._give_births()

    def _drop_copy(self, spare: "socket.socket") -> None:
        """A copy that is told nothing ends."""
        late = self.coming.pop(spare, None)
        if late is not None:
            late.cancel()
        self.spares.pop(spare, None)
        self.loop.unregister(spare.fileno())
        spare.close()

    # --- templates

    def _make_template(self, *, rehearse_in: str = "") -> Template:
        """Raises: OSError when there is no room for one more process."""
        template = fork_template(rehearse_in=rehearse_in)
        self.templates[template.pid] = template
        self.loop.register(template.channel.fileno(), READ, lambda _mask: self._hear(template))
        return template

    def _improve(self) -> None:
        """Have a template rehearse beside the one that works already."""
        if self.is_dismissed or self.better is not None:
            return
        try:
            self.better = self._make_template(rehearse_in=self.folder)
        except OSError as error:
            self.log.warning(f"no rehearsal: {error}")

    def _hear(self, template: Template) -> None:
        """A template that rehearsed is ready, and takes over; or it has ended, which SIGCHLD tells as well."""
        try:
            message = template.channel.recv(MESSAGE_MAX_BYTES)
        except OSError:
            message = b""
        if not message or self.is_dismissed:
            self.loop.unregister(template.channel.fileno())
            return
        self.log.info(f"template {template.pid} is ready: {message.decode(errors='replace')}")
        self.template.dismiss()
        self.template, self.better, self.has_rehearsed = template, None, True
        for spare in (*self.spares, *self.coming):
            self._drop_copy(spare)
        self._order_copies()

    def ended(self, pid: int, status: int) -> bool:
        """Whether this child was a template. When it was the one in use there is another, and nothing is lost."""
        template = self.templates.pop(pid, None)
        if template is None:
            return False
        self.loop.unregister(template.channel.fileno())
        template.channel.close()
        if self.is_dismissed:
            return True
        if template is self.better:
            self.better = None
            self.log.warning(f"template {pid} ended with wait status {status} while it rehearsed")
        elif template is self.template:
            self.log.warning(f"template {pid} ended with wait status {status}: making another")
            self.loop.call_soon(lambda: self._replace(template))
        return True

    def _despair(self) -> None:
        """A copy does not come: the template is of no use any more, whatever is the matter with it."""
        stuck = self.template
        if stuck.pid in self.templates and not self.is_dismissed:  # else it has ended, and that is seen to
            self.log.warning(f"template {stuck.pid} has not forked for {STUCK_S:g} s: making another")
            stuck.kill()
            self._replace(stuck)

    def _replace(self, lost: Template) -> None:
        if self.is_dismissed or self.template is not lost:
            return
        try:
            self.template, self.has_rehearsed = self._make_template(), False
        except OSError as error:
            self.log.error(f"no template: {error}")
            self.loop.call_later(COPY_AGAIN_S, lambda: self._replace(lost))
            return
        for spare in tuple(self.coming):
            self._drop_copy(spare)
        self._order_copies()
        self.loop.call_later(AGAIN_S, self._improve)

    # --- the end

    def dismiss(self) -> None:
        """Have all that wait end, and make no more. Idempotent."""
        if self.is_dismissed:
            return
        self.is_dismissed = True
        for template in self.templates.values():
            template.dismiss()
        for spare in (*self.spares, *self.coming):
            self._drop_copy(spare)
        for birth in tuple(self.births):
            self._take(birth)
            birth.give_up(InterruptedError("the keeper ends"))

    def close(self) -> None:
        self.dismiss()
        for template in self.templates.values():
            template.channel.close()
