"""What waits in memory to be taken is bounded, and those that wait for room come in turn."""

import asyncio
import gc

import pytest

from pixels_assets.dicomweb.sending import SLICE, HeldResponse, NoRoom, Room


def test_room_is_given_in_turn_and_never_more_than_there_is():
    async def run():
        room, order, most = Room(10, 5), [], 0

        async def one(name, size):
            nonlocal most
            with await room.take(size):
                order.append(name)
                most = max(most, room.taken)
                await asyncio.sleep(0)

        await asyncio.gather(*(one(number, size) for number, size in enumerate([6, 6, 3, 100, 1, 4] * 50)))
        return room.taken, most, order

    left, most, order = asyncio.run(run())
    assert (left, most) == (0, 10)
    assert order == list(range(300))


def test_who_waits_too_long_is_turned_away_and_lets_the_next_one_in():
    async def run():
        room = Room(10, 0.2)
        first = await room.take(7)
        waiting = asyncio.create_task(room.take(8))
        await asyncio.sleep(0.1)
        small = asyncio.create_task(room.take(3))
        with pytest.raises(NoRoom):
            await waiting
        (await small).release()
        first.release()
        first.release()
        return room.taken

    assert asyncio.run(run()) == 0


def test_who_waits_is_not_turned_away_as_long_as_others_are_served():
    async def run():
        room = Room(10, 0.1)

        async def one():
            with await room.take(10):
                await asyncio.sleep(0.04)

        await asyncio.gather(*(one() for _ in range(8)))
        return room.taken

    assert asyncio.run(run()) == 0


def test_one_that_goes_away_leaves_no_room_behind():
    async def run():
        room = Room(10, 5)
        first = await room.take(10)
        waiting = asyncio.create_task(room.take(5))
        await asyncio.sleep(0)
        waiting.cancel()
        first.release()
        await asyncio.gather(waiting, return_exceptions=True)
        forgotten = await room.take(5)
        del forgotten
        gc.collect()
        await asyncio.sleep(0)
        return room.taken

    assert asyncio.run(run()) == 0


@pytest.mark.parametrize("size", [0, 1, SLICE, SLICE + 1, 3 * SLICE + 7])
def test_an_answer_in_pieces_is_whole_and_gives_its_room_back(size):
    sent = []

    async def send(message):
        sent.append(message)

    async def run():
        room = Room(10, 5)
        await HeldResponse([b"head", b"x" * size, b"tail"], await room.take(10))({"type": "http"}, None, send)
        return room.taken

    assert asyncio.run(run()) == 0
    start, *bodies = sent
    assert b"".join(message["body"] for message in bodies) == b"head" + b"x" * size + b"tail"
    assert max(len(message["body"]) for message in bodies) <= SLICE
    assert (b"content-length", str(size + 8).encode()) in start["headers"]
    assert [message.get("more_body", False) for message in bodies] == [True] * (len(bodies) - 1) + [False]


def test_room_comes_back_when_a_client_leaves():
    async def send(message):
        raise ConnectionResetError

    async def run():
        room = Room(10, 5)
        with pytest.raises(ConnectionResetError):
            await HeldResponse([b"x"], await room.take(10))({"type": "http"}, None, send)
        return room.taken

    assert asyncio.run(run()) == 0
