"""Snapshots go to gateways that look, for as long as they said, and to nobody else."""

from engine.server import Gone
from engine.watchers import INTERVAL_S, MAX_WATCH_S
from scheduler.protocol import Outputs, Snapshot, Watch
from tests.engine.test_loop import World


def shown(world: World, connection: int = 1) -> list[Snapshot]:
    return [message for to, message in world.server.sent if to == connection and isinstance(message, Snapshot)]


def watch(world: World, for_s: float, connection: int = 1) -> None:
    world.server.inbox.append((connection, Watch(for_s)))  # type: ignore[arg-type]


def pass_time(world: World, seconds: float, step_s: float = 0.125) -> None:
    for _ in range(round(seconds / step_s)):
        world.now += step_s
        world.turn()


def test_nobody_looks_nothing_is_shown() -> None:
    world = World()
    world.submit(1)
    pass_time(world, 3.0)
    assert world.server.outputs(1) and shown(world) == shown(world, 2) == []


def test_who_looks_is_shown_at_a_bounded_rate_and_not_for_ever() -> None:
    world = World()
    watch(world, 2.0)
    world.turn()
    assert len(shown(world)) == 1
    pass_time(world, 2.0)
    assert len(shown(world)) == 1 + 2.0 / INTERVAL_S
    pass_time(world, 20.0)
    assert len(shown(world)) == 1 + 2.0 / INTERVAL_S
    assert shown(world, 2) == []


def test_looking_again_prolongs_it_and_is_no_faster() -> None:
    world = World()
    for _ in range(8):
        watch(world, 1.0)
        pass_time(world, 0.5)
    pass_time(world, 20.0)
    assert len(shown(world)) in (9, 10)


def test_an_eternity_is_cut() -> None:
    world = World()
    watch(world, 1e9)
    pass_time(world, MAX_WATCH_S * 2, step_s=0.25)
    assert len(shown(world)) <= MAX_WATCH_S / INTERVAL_S + 1


def test_rows_carry_the_ids_of_the_gateway_that_looks() -> None:
    world = World()
    world.submit(7, connection=1)
    world.submit(7, connection=2)
    world.submit(8, connection=2)
    watch(world, 1.0, connection=2)
    world.turn()
    (snapshot,) = shown(world, 2)
    assert [row.seq_id for row in snapshot.rows] == [None, 7, 8]
    assert snapshot.stats.running == 3


def test_a_row_is_seen_and_gone_when_the_engine_is_idle() -> None:
    world = World()
    world.submit(1)
    watch(world, 5.0)
    pass_time(world, 2.0)
    first, *_, last = shown(world)
    assert [row.seq_id for row in first.rows] == [1] and last.rows == []
    assert first.blocks.runs[0] == (1, 1, 0) and last.blocks.runs[0] == (1, 0, 1)


def test_a_gateway_that_leaves_is_shown_nothing_more() -> None:
    world = World()
    watch(world, 50.0)
    world.turn()
    world.server.inbox.append((1, Gone()))
    pass_time(world, 5.0)
    assert len(shown(world)) == 1


def test_an_idle_loop_sleeps_until_a_snapshot_is_due_and_no_shorter() -> None:
    world = World()
    slept: list[float] = []

    def wait(seconds: float) -> None:
        slept.append(seconds)
        world.now += seconds
        if len(slept) == 8:
            world.loop.stopping = True

    world.server.wait = wait  # type: ignore[method-assign]
    watch(world, 1.2)
    world.loop.run()
    assert slept == [INTERVAL_S] * 3 + [1.0] * 5
    assert len(shown(world)) == 3
    assert sum(isinstance(message, Outputs) for to, message in world.server.sent if to == 1) >= 4


def test_no_look_is_taken_where_nobody_looks() -> None:
    world = World()
    looks = 0
    look = world.scheduler.snapshot

    def counted() -> Snapshot:
        nonlocal looks
        looks += 1
        return look()

    world.scheduler.snapshot = counted  # type: ignore[method-assign]
    world.submit(1)
    pass_time(world, 3.0)
    assert looks == 0
    watch(world, 1.0, connection=1)
    watch(world, 1.0, connection=2)
    world.turn()
    assert looks == 1  # for both
