"""What a fault does, once it was decided that it strikes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from celery.utils.collections import AttributeDict
from celery.worker import control, state

from .broker import Broker
from .errors import hide_ours
from .faults import BackendDown, BrokerDown, Delay, Drop, Duplicate, Fault, Revoke, Sleep
from .memory import Server
from .simulation import TASK_RANK, TEST_RANK, Simulation

if TYPE_CHECKING:
    from .injection import Execution

__tracebackhide__ = hide_ours


class Effects:
    """The faults' way into the simulated world.

    ``consumer`` gives the worker's consumer, ``None`` when no worker runs. ``hook`` is pytest's, for those who watch.
    """

    def __init__(
        self, app: Any, simulation: Simulation, server: Server, broker: Broker, consumer: Callable[[], Any], hook: Any
    ) -> None:
        self._app = app
        self._simulation = simulation
        self._server = server
        self._broker = broker
        self._consumer = consumer
        self._hook = hook

    def before(self, fault: Fault, execution: Execution) -> None:
        """Tell other plugins that a fault is about to strike."""
        if self._hook is not None:
            self._told(self._hook.pytest_celery_faults_before_fault, fault, execution)

    def after(self, fault: Fault, execution: Execution) -> None:
        """Tell other plugins that a fault has struck; for an exception or a crash: is about to leave the task."""
        if self._hook is not None:
            self._told(self._hook.pytest_celery_faults_after_fault, fault, execution)

    def _told(self, hook: Callable[..., Any], fault: Fault, execution: Execution) -> None:
        try:
            hook(fault=fault, execution=execution)
        except Exception as error:  # the hook is wrong, not the task
            self.fail_test(error)

    def fail_test(self, error: Exception) -> None:
        """Raise in the test what is wrong with it, wherever that was noticed."""
        if self._simulation.current.rank == TEST_RANK:
            raise error
        self._simulation.abort(error)

    def strike(self, fault: Fault, execution: Execution) -> None:
        """Do what a fault does where the code runs that it strikes; messages are the broker's business."""
        if isinstance(fault, (Drop, Duplicate, Delay)):
            return
        if isinstance(fault, Sleep):
            self._simulation.sleep(length_of(fault, execution))
        elif isinstance(fault, BrokerDown):
            self._broker.go_down(fault.seconds)
        elif isinstance(fault, BackendDown):
            self._server.take_down("backend", fault.seconds)
        elif isinstance(fault, Revoke):
            self._revoke(execution.task_id, fault.terminate)
        elif self._simulation.current.rank == TASK_RANK and not execution.is_message:
            fault.strike(execution)
        else:  # in the middle of kombu, which would take it for an error of the connection, or of its own
            try:
                fault.strike(execution)
            except Exception as error:
                self.fail_test(error)

    def crash(self) -> None:
        """The pool process that runs is killed."""
        child = self._simulation.current.data
        child.die("Crash()")
        self._simulation.end()

    def _revoke(self, task_id: str, terminate: bool) -> None:
        """What the control command does in the worker, as if its message had just come."""
        consumer = self._consumer()
        if consumer is None:  # nobody hears it
            return
        worker_state = AttributeDict(app=self._app, hostname=consumer.hostname, consumer=consumer)
        if self._simulation.current.rank != TASK_RANK:
            control.revoke(worker_state, task_id, terminate=terminate)
            return
        consumer.call_soon(control.revoke, worker_state, task_id, terminate=terminate)
        # At this very instant, unless the worker does not hear it, since it has lost its broker.
        self._simulation.wait(
            "the worker to take notice of the revoke",
            ready=lambda: task_id in state.revoked and not terminate,
            until=self._simulation.clock.now_us + 1,
        )


def length_of(fault: Sleep, execution: Execution) -> float:
    """The seconds of a sleep in the execution that it strikes."""
    if fault.beyond is None:
        assert fault.seconds is not None
        return fault.seconds
    limit = execution.time_limits[fault.beyond]
    assert limit is not None
    return limit + 1
