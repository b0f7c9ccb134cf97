"""Several replicas that train as one: every GPU of a host, several hosts, or both, through `tf.distribute`.

Each replica takes its share of every *global* batch, so that the same data, seed and settings give the same figures
whatever their number. What makes the difference in common training over replicas is done for the batch as a whole here:
batch normalisation takes its moments over all shares, dropout draws for all of them and takes its own, and gradients
are summed, not averaged over unequal shares.

The hosts of a cluster are named by ``TF_CONFIG``, the form that TensorFlow knows:
``{"cluster": {"worker": ["10.0.3.4:2222", "10.0.3.5:2222"]}, "task": {"type": "worker", "index": 0}}``. The first
worker is the chief: its checkpoint decides where all begin, its figures when all end, and it alone makes the bundle.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

VARIABLE = "TF_CONFIG"
# Status with which a program ends because another host did: unlike its own "no", it is worth starting again.
LOST = 3
# Seconds for which a host waits for the others at the beginning: they may still fetch and decode the data.
PATIENCE = 1800
# Seconds that TensorFlow may take to bring together hosts that are all there.
JOINING = 180
# What hosts say to one another when they meet.
GREETING = b"lightbox\n"
# Bytes of a file that are handed over at once.
PIECE = 1 << 24


class WorkersError(Exception):
    """Hosts cannot train together; the text says what to do."""


class LostError(Exception):
    """Another host is gone; what was trained so far is kept."""


def cluster(environment: Mapping[str, str]) -> tuple[tuple[str, ...], int]:
    """Return the addresses of all hosts that train together, and which of them this one is; of a single host, none.

    Raises:
        WorkersError: ``TF_CONFIG`` is not what TensorFlow expects.
    """
    text = environment.get(VARIABLE, "")
    if not text:
        return (), 0
    try:
        found = json.loads(text)
        addresses = tuple(str(address) for address in found["cluster"]["worker"])
        index = int(found["task"]["index"])
    except (KeyError, TypeError, ValueError) as error:
        raise WorkersError(f"{VARIABLE} is {text!r}, expected cluster.worker and task.index") from error
    if set(found["cluster"]) != {"worker"} or found["task"].get("type") != "worker" or not 0 <= index < len(addresses):
        raise WorkersError(f"{VARIABLE} is {text!r}: every host is a worker, and the index tells which")
    return (addresses, index) if len(addresses) > 1 else ((), 0)


def join(environment: Mapping[str, str]) -> Team | None:
    """Return the team of the hosts that ``TF_CONFIG`` names, once all of them are there; None for a single host.

    Must come before anything else that TensorFlow computes.

    Raises:
        WorkersError: ``TF_CONFIG`` is not what TensorFlow expects, or another host did not come.
        LostError: another host came and is gone again.
    """
    addresses, index = cluster(environment)
    if not addresses:
        return None
    import tensorflow as tf

    # NCCL would open ports of its own choosing between the hosts; this way all goes through the one of TF_CONFIG.
    ring = tf.distribute.experimental.CommunicationImplementation.RING
    options = tf.distribute.experimental.CommunicationOptions(implementation=ring)
    meet(addresses, index)
    # All are there, so this is short. Inside TensorFlow the wait has no end and hears no signal but one that kills.
    signal.alarm(JOINING)
    try:
        with lost_means_lost():
            team = Team(tf.distribute.MultiWorkerMirroredStrategy(communication_options=options), addresses, index)
            team.agreed("here")
    finally:
        signal.alarm(0)
    return team


def meet(addresses: Sequence[str], index: int) -> None:
    """Wait until every other host waits too: one that does not know yet that its training broke off must not be joined.

    Each calls on those before it, on the port that TensorFlow takes afterwards, and is called by those behind it.

    Raises:
        WorkersError: one did not come, or the port is taken.
    """
    before, behind = set(range(index)), set(range(index + 1, len(addresses)))
    until = time.monotonic() + PATIENCE
    try:
        listener = socket.create_server(("", int(addresses[index].rpartition(":")[2])))
    except OSError as error:
        raise WorkersError(f"nothing can listen on {addresses[index]}: {error.strerror or error}") from error
    with listener:
        listener.settimeout(0.2)
        while before or behind:
            if time.monotonic() > until:
                missing = ", ".join(addresses[other] for other in sorted(before | behind))
                raise WorkersError(f"{missing} did not come within {PATIENCE} seconds: start the training there too")
            before -= {other for other in before if _call(addresses[other], index)}
            behind -= _answer(listener)


def _call(address: str, index: int) -> bool:
    """Tell a host who is here; return whether it answered."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=2) as connection:
            connection.sendall(f"{index}\n".encode())
            if connection.recv(16) != GREETING:
                return False
            connection.sendall(GREETING)
            return True
    except OSError:
        time.sleep(0.2)
        return False


def _answer(listener: socket.socket) -> set[int]:
    """Return which host called and heard the answer; none where nobody did, or somebody else."""
    try:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(2)
            number = int(connection.recv(16))
            connection.sendall(GREETING)
            return {number} if connection.recv(16) == GREETING else set()
    except (OSError, ValueError):
        return set()


def leave(main: Callable[[], int]) -> None:
    """Run a program and end with its status, at once where hosts train together: TensorFlow may still wait for one."""
    try:
        status: Any = main()
    except SystemExit as stop:
        status = stop.code
    if os.environ.get(VARIABLE):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


@contextlib.contextmanager
def lost_means_lost() -> Iterator[None]:
    """Turn what TensorFlow raises when another host is gone into `LostError`."""
    import tensorflow as tf

    try:
        yield
    except (
        tf.errors.AbortedError,
        tf.errors.CancelledError,
        tf.errors.DeadlineExceededError,
        tf.errors.FailedPreconditionError,
        tf.errors.InternalError,
        tf.errors.UnavailableError,
    ) as error:
        raise LostError(str(error.message).splitlines()[0]) from error


def share(count: int, parts: int, index: int) -> slice:
    """Return which of ``count`` rows one of ``parts`` takes: consecutive ones, as many as any other or one more."""
    return slice(count * index // parts, count * (index + 1) // parts)


@dataclass(frozen=True)
class Team:
    """The replicas that train together, as one host sees them.

    Attributes:
        strategy: of `tf.distribute`.
        addresses: of the hosts, in their order; none where there is one host.
        index: of this host.
    """

    strategy: Any
    addresses: tuple[str, ...] = ()
    index: int = 0

    @property
    def hosts(self) -> int:
        """Return how many hosts there are."""
        return max(1, len(self.addresses))

    @property
    def chief(self) -> bool:
        """Return whether this host decides and writes."""
        return self.index == 0

    @property
    def replicas(self) -> int:
        """Return how many replicas there are on all hosts."""
        return int(self.strategy.num_replicas_in_sync)

    @property
    def own(self) -> range:
        """Return the numbers of this host's replicas."""
        each = self.replicas // self.hosts
        return range(self.index * each, (self.index + 1) * each)

    def rows(self, count: int) -> slice:
        """Return this host's share of ``count`` rows: what its replicas take together."""
        return slice(share(count, self.replicas, self.own[0]).start, share(count, self.replicas, self.own[-1]).stop)

    def watch(self) -> AbstractContextManager[None]:
        """Return the context in which the loss of another host is a `LostError`."""
        return lost_means_lost() if self.hosts > 1 else contextlib.nullcontext()

    # --- variables and values -----------------------------------------------------------------------------------------

    def scope(self) -> AbstractContextManager[Any]:
        """Return the context in which networks are made, so that every replica has their variables."""
        import tensorflow as tf

        def create(following: Callable[..., Any], **options: Any) -> Any:
            # Keras asks for none, which forbids replicas to change a variable. Those that they change here — moments
            # and seeds — are the same on all of them.
            if options.get("aggregation") in (None, tf.VariableAggregation.NONE):
                options["aggregation"] = tf.VariableAggregation.ONLY_FIRST_REPLICA
            return following(**options)

        stack = contextlib.ExitStack()
        stack.enter_context(self.strategy.scope())
        if self.replicas > 1:
            stack.enter_context(tf.variable_creator_scope(create))
        return stack

    def spread(self, arrays: tuple[Any, ...], count: int) -> Any:
        """Give each replica of this host its share of rows.

        Args:
            arrays: this host's share, shape (n, …).
            count: rows of all hosts together.
        """
        begin = self.rows(count).start

        def piece(context: Any) -> tuple[Any, ...]:
            part = share(count, self.replicas, int(context.replica_id_in_sync_group))
            return tuple(array[part.start - begin : part.stop - begin] for array in arrays)

        return self.strategy.experimental_distribute_values_from_function(piece)

    def total(self, array: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the sum of the hosts' arrays, on every host; all must have one shape."""
        import tensorflow as tf

        if self.hosts == 1:
            return array

        def once(context: Any) -> Any:
            first = int(context.replica_id_in_sync_group) == self.own[0]
            return tf.convert_to_tensor(array if first else np.zeros_like(array))

        values = self.strategy.experimental_distribute_values_from_function(once)
        return np.asarray(self.strategy.reduce(tf.distribute.ReduceOp.SUM, values, axis=None))

    def every(self, value: Any) -> list[Any]:
        """Return what each host says, in their order; ``value`` is what this one says, as JSON knows it."""
        if self.hosts == 1:
            return [value]
        content = json.dumps(value).encode()
        # As numbers that every device can add, and that stay exact.
        sizes = np.zeros(self.hosts, np.float32)
        sizes[self.index] = len(content)
        sizes = self.total(sizes)
        said = np.zeros((self.hosts, int(sizes.max())), np.float32)
        said[self.index, : len(content)] = np.frombuffer(content, np.uint8)
        said = self.total(said)
        return [json.loads(bytes(row[: int(size)].astype(np.uint8))) for row, size in zip(said, sizes, strict=True)]

    def agreed(self, value: Any) -> Any:
        """Return what the chief says, on every host."""
        return self.every(value if self.chief else None)[0]

    def hand_over(self, source: Path | None, target: Path) -> None:
        """Write a file of the chief on every other host, through the cluster: the hosts share no disk.

        Args:
            source: the file, on the chief.
            target: where it goes, on the others.
        """
        size = int(self.agreed(source.stat().st_size if source else None))
        with (source or target).open("rb" if source else "wb") as stream:
            for begin in range(0, size, PIECE):
                words = np.zeros(-(-min(PIECE, size - begin) // 2), np.float32)
                if source:
                    content = stream.read(PIECE).ljust(2 * len(words), b"\0")
                    words = np.frombuffer(content, np.uint16).astype(np.float32)
                # A sum with zeros: two bytes at a time it is exact.
                words = self.total(words)
                if not source:
                    stream.write(words.astype(np.uint16).tobytes()[: size - begin])

    def end(self, problem: str = "") -> str:
        """End together: nobody leaves before the chief is done, so that all begin again if it is lost on the way.

        Args:
            problem: of the chief, in words; empty when all went well.

        Returns:
            The same, on every host.
        """
        with contextlib.suppress(LostError) if self.chief else contextlib.nullcontext(), self.watch():
            problem = str(self.agreed(problem))
        # Nobody leaves while another still reads that word from it; whoever is gone by now has read it.
        with contextlib.suppress(LostError), self.watch():
            self.agreed("")
        return problem


# --- layers that look at the whole batch ------------------------------------------------------------------------------


def twin(model: Any, size: int, team: Team) -> Any:
    """Return a network of the same weights whose replicas, in training, see what one replica would see.

    Args:
        model: the network; it stays as it is, so that what is saved is plain Keras.
        size: images of a global batch.
        team: the replicas.
    """
    import keras
    import tensorflow as tf

    replicas = team.replicas

    class Dropout(keras.layers.Layer):
        """Draws for the whole batch and takes this replica's share."""

        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner

        def call(self, x: Any, training: bool | None = None, mask: Any = None) -> Any:
            if not training or not self.inner.rate:
                return x
            seed = tf.cast(self.inner.seed_generator.next(), tf.int32)
            whole = tf.concat([[size], tf.shape(x)[1:]], 0)
            kept = tf.nn.experimental.stateless_dropout(tf.ones(whole, x.dtype), self.inner.rate, seed)
            number = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.int32)
            begin, end = size * number // replicas, size * (number + 1) // replicas
            return x * kept[begin:end]

    class BatchNormalization(keras.layers.Layer):
        """Takes the moments of the whole batch."""

        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner

        def call(self, x: Any, training: bool | None = None, mask: Any = None) -> Any:
            inner = self.inner
            if not training or not inner.trainable:
                return inner(x, training=False)
            axes = list(range(len(x.shape) - 1))
            # About the running mean, so that the difference of two sums keeps its digits.
            centre = tf.stop_gradient(tf.convert_to_tensor(inner.moving_mean))
            away = x - centre
            sums = tf.stack([tf.reduce_sum(away, axes), tf.reduce_sum(tf.square(away), axes)])
            sums = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, sums)
            first, second = tf.unstack(sums / (size * math.prod(x.shape[1:-1])))
            mean, variance = centre + first, tf.maximum(second - tf.square(first), 0.0)
            for moving, now in ((inner.moving_mean, mean), (inner.moving_variance, variance)):
                moving.assign(moving * inner.momentum + now * (1.0 - inner.momentum))
            beta, gamma = inner.beta if inner.center else None, inner.gamma if inner.scale else None
            return tf.nn.batch_normalization(x, mean, variance, beta, gamma, inner.epsilon)

    def alike(layer: Any) -> Any:
        if isinstance(layer, keras.Model):
            return twin(layer, size, team)
        if isinstance(layer, keras.layers.Dropout):
            return Dropout(layer)
        return BatchNormalization(layer) if isinstance(layer, keras.layers.BatchNormalization) else layer

    return keras.models.clone_model(model, clone_function=alike)


class Together:
    """Trains a compiled network on all replicas, a global batch at a time.

    Args:
        model: the network, made within the team's scope and compiled, with an optimizer that is built.
        size: images of a global batch.
        team: the replicas.
    """

    def __init__(self, model: Any, size: int, team: Team) -> None:
        import keras
        import tensorflow as tf

        if size < team.replicas:
            raise WorkersError(f"a batch of {size} images cannot be shared among {team.replicas}: raise --batch-size")
        self.size, self.team = size, team
        of_one = type(model.loss).from_config({**model.loss.get_config(), "reduction": "none"})
        binary = model.output_shape[-1] == 1
        accuracy = keras.metrics.binary_accuracy if binary else keras.metrics.categorical_accuracy
        with team.scope():
            same = twin(model, size, team)

        def replica(x: Any, y: Any, weight: Any) -> Any:
            with tf.GradientTape() as tape:
                said = same(x, training=True)
                # A share of the batch's mean loss, and of what does not depend on images.
                loss = tf.reduce_sum(of_one(y, said) * weight[:, 0]) / size
                if model.losses:
                    loss += tf.add_n(model.losses) / team.replicas
            gradients = tape.gradient(loss, model.trainable_variables)
            # Keras sums gradients over all replicas itself.
            model.optimizer.apply(gradients, model.trainable_variables)
            figures = tf.stack([loss, tf.reduce_sum(accuracy(y, said)) / size])
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, figures)

        @tf.function
        def step(parts: Any) -> Any:
            return team.strategy.run(replica, args=parts)

        self.step = step

    def epoch(self, batches: Any, tell: Callable[[int, dict[str, float]], None]) -> dict[str, list[float]]:
        """Train an epoch; return loss and accuracy as Keras' `fit` does.

        Args:
            batches: this host's share of each batch: images or features, targets, weights (n, 1).
            tell: told after each batch which it was, and the figures so far.
        """
        figures = np.zeros(2)
        logs: dict[str, float] = {}
        for number, arrays in enumerate(batches):
            found = self.step(self.team.spread(arrays, self.size))
            figures += np.asarray(self.team.strategy.experimental_local_results(found)[0], dtype=np.float64)
            logs = dict(zip(("loss", "accuracy"), (figures / (number + 1)).tolist(), strict=True))
            tell(number, logs)
        return {name: [value] for name, value in logs.items()}


@functools.lru_cache(maxsize=2)
def _asked(model: Any, team: Team) -> Callable[[Any], Any]:
    """Return what asks a network on every replica; kept, so that its graph is built once and not for every epoch."""
    import tensorflow as tf

    @tf.function
    def run(parts: Any) -> Any:
        return team.strategy.run(lambda x: model(x, training=False), args=parts)

    return cast("Callable[[Any], Any]", run)


def outputs(model: Any, batches: Iterator[Any], count: int, team: Team) -> NDArray[np.float32]:
    """Return what a network says of ``count`` images, in their order, on every host; each host looks at its share.

    Args:
        model: the network, made within the team's scope.
        batches: this host's share of the images, in order; all batches of one size, the last padded.
        count: images of all hosts together.
        team: the replicas.
    """
    import tensorflow as tf

    each = len(team.own)
    run = _asked(model, team)
    own = team.rows(count)
    found: list[Any] = [np.zeros((0, model.output_shape[-1]), np.float32)]
    for x in batches:

        def piece(context: Any, x: Any = x) -> tuple[Any, ...]:
            return (tf.convert_to_tensor(x[share(len(x), each, int(context.replica_id_in_sync_group) - team.own[0])]),)

        parts = run(team.strategy.experimental_distribute_values_from_function(piece))
        found += [np.asarray(part, np.float32) for part in team.strategy.experimental_local_results(parts)]
    whole = np.zeros((count, model.output_shape[-1]), np.float32)
    whole[own] = np.concatenate(found)[: own.stop - own.start]
    # Every row comes from one host: a sum with zeros puts them in order.
    return team.total(whole)
